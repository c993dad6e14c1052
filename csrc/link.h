/* link: a simulation rank's end of one lane: how bytes get to a head and back.
 * Knows slots, leases and both transports; knows nothing of calls and waiting. */
#ifndef MSI_LINK_H
#define MSI_LINK_H

#include "slot.h"
#include "window.h"

/* Rows of a head's slabs that are this client's until it gives them back. */
typedef struct msi_lease {
  uint32_t begin, rows;
  int busy;    /* a request uses it, or it is being asked for */
  int once;    /* it must be given back after one request */
  int stale;   /* it must be given back now */
  int renewed; /* it was replaced before: sizes vary, ask for some more */
} msi_lease;

typedef struct msi_link {
  msi_window *window;
  int head; /* world rank */
  int transport;
  uint32_t lane;
  msi_layout layout;
  uint8_t *memory;         /* shared: the head's segment; rma: NULL */
  msi_slot *slots;         /* shared: our lane itself; rma: our copy of it */
  uint64_t sent;           /* sequence of the last request */
  int in_flight;           /* slots taken */
  void *owners[MSI_SLOTS]; /* of the slots in flight; NULL: free */
  msi_lease leases[MSI_SLOTS];
  const void *unsent; /* owner that has asked for a lease and not sent its rows yet */
} msi_link;

int msi_link_open(msi_link *link, msi_window *window, const mpiserve_description *description,
                  int head);
void msi_link_close(msi_link *link);

/* Is the slot of the next request free? */
int msi_link_free(const msi_link *link);

/* A lease for so many rows that is not busy: its index, or -1. */
int msi_link_lease_find(const msi_link *link, int64_t rows);

/* A lease to replace by a larger one: its index, or -1 if all are busy. */
int msi_link_lease_spare(const msi_link *link);

/* Send a request; msi_link_free() must hold. owner is handed back with the
 * reply. text goes with MSI_FAIL, lease and rows with MSI_LEASE. */
int msi_link_send(msi_link *link, msi_kind kind, int64_t rows, int lease, const char *text,
                  void *owner);

/* Send rows to be computed; lease is -1 if they ride in the slot. *sequence
 * names the request for msi_link_cancel(). */
int msi_link_infer(msi_link *link, int64_t rows, int lease, void *const *inputs, void *owner,
                   uint64_t *sequence);

/* The head need not compute this one any more, if it has not begun. */
int msi_link_cancel(msi_link *link, uint64_t sequence);

/* The oldest slot with a complete reply: its number, or -1. */
int msi_link_reply(msi_link *link);

/* The outputs of a reply; the slot stays taken. */
int msi_link_outputs(msi_link *link, int slot, int64_t rows, int lease, void *const *outputs);

/* Free the slot; returns its owner. */
void *msi_link_release(msi_link *link, int slot);

/* rma: put one message that has come into the lane of its link. */
void msi_link_deliver(msi_link *link, const void *message);

#endif
