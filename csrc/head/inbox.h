/* inbox: a head's end of the lanes of one transport: the requests that clients
 * wrote, and the replies. It knows slots and the transport, and nothing of batches. */
#ifndef MSI_INBOX_H
#define MSI_INBOX_H

#include "head/row_pool.h"
#include "mpi/transport.h"

typedef struct msi_lane {
  uint64_t taken;             /* sequence of the last request taken */
  int64_t seen_ns[MSI_SLOTS]; /* when its requests were seen, if before they were taken; or 0 */
  uint32_t queued;            /* requests that wait for a batch, or for rows */
  uint8_t active;             /* counts in the census: attached, not idle, not gone */
  uint8_t missed;             /* batches closed by delay, one after the other, without it */
  uint8_t passing;            /* counts only while it has a request in the queue */
  uint8_t gone;
  uint8_t guest;  /* of a gateway or trainer: not in the census, and nobody waits until it leaves */
  uint8_t open;   /* a bit for each slot whose request has no reply yet; MSI_SHUT */
  uint8_t absent; /* a round of a reproducible service waits for it no more, until it asks again */
  uint8_t n_read; /* of the batch of this round: which rows its requests read */
  uint32_t round;
  uint32_t turn; /* of its request in a round: 1 more than the place in the queue; 0: it has none */
  msi_range read[MSI_SLOTS];
  msi_range leases[MSI_LEASES];
} msi_lane;

typedef struct msi_inbox {
  msi_window *window;
  const msi_transport *transport;
  int service_index; /* of its service among those of this rank */
  msi_layout layout;
  uint8_t *memory; /* this rank's; where the section lies in it the layout knows */
  int in_segment;  /* it is a part of this rank's segment, and no window of MPI */
  uint8_t *seen;   /* the doorbells, as far as they were taken */
  int *clients;    /* world rank by lane */
  msi_lane *lanes;
  msi_row_pool pool;
  uint32_t *dims;         /* the free dimensions of requests, by lane and slot, checked */
  struct msi_inbox *next; /* of those that the broker thread watches */
  MPI_Request *sends;     /* of the last replies, by lane and slot, where these are messages */
} msi_inbox;

/* Lays the section of this rank's service service_index out, from byte begin of its memory on.
 * Local; the memory comes with msi_inbox_attach(). */
int msi_inbox_open(msi_inbox *inbox, const msi_world *world, int transport,
                   const mpiserve_description *description, int service_index, size_t begin);
void msi_inbox_attach(msi_inbox *inbox, msi_window *window);
void msi_inbox_close(msi_inbox *inbox);

/* Finds the next lane, from *lane on, whose doorbell has rung: 1, or 0 if there is none. */
int msi_inbox_rung(const msi_inbox *inbox, uint32_t *lane);

/* Sees what clients have written, before a look at the doorbells. */
static inline int msi_inbox_sync(const msi_inbox *inbox) {
  return inbox->transport->sync ? inbox->transport->sync(inbox->window) : MPISERVE_OK;
}

/* Copies the header of the request that msi_inbox_take() will take, each word read once: a client
 * may write there at any time, so what was checked must be what is used. `cancelled` and `asleep`
 * are not copied. 0 if there is none: the request before in the same slot has no reply yet, so
 * that a client that breaks the rules has MSI_SLOTS requests at the head as all others. */
int msi_inbox_read(const msi_inbox *inbox, uint32_t lane, msi_request_header *request);

/* Copies the free dimensions of a request, each word read once, and checks them; 0: they do not
 * fit, or there are none. Those of a request that was checked, until it has its reply. */
int msi_inbox_read_dims(msi_inbox *inbox, uint32_t lane, uint64_t sequence);
static inline uint32_t *msi_inbox_dims(const msi_inbox *inbox, uint32_t lane, uint64_t sequence) {
  size_t slot = lane * (size_t)MSI_SLOTS + (sequence - 1) % MSI_SLOTS;
  return inbox->dims + slot * (size_t)inbox->layout.inputs.n_free;
}

/* Takes one request of a lane that has rung: its sequence. seen_ns is when it was noted first,
 * or 0. */
uint64_t msi_inbox_take(msi_inbox *inbox, uint32_t lane, int64_t *seen_ns);

/* No request of the lane is taken any more: what its client wrote before it died stays there. */
enum { MSI_SHUT = 1 << 7 };
_Static_assert(MSI_SHUT >= 1 << MSI_SLOTS, "a bit beside those of the slots");
static inline void msi_inbox_shut(msi_inbox *inbox, uint32_t lane) {
  inbox->lanes[lane].open |= MSI_SHUT;
}
static inline int msi_inbox_is_shut(const msi_inbox *inbox, uint32_t lane) {
  return inbox->lanes[lane].open & MSI_SHUT;
}

/* Notes when the requests of a lane that has rung were seen, but not yet taken. */
void msi_inbox_note(msi_inbox *inbox, uint32_t lane, int64_t now_ns);

msi_slot *msi_inbox_slot(const msi_inbox *inbox, uint32_t lane, uint64_t sequence);

/* Gives a lane rows for lease i; what it had there goes back first. rows 0 only
 * gives back. 0 if the pool is too full now. */
int msi_inbox_lease(msi_inbox *inbox, uint32_t lane, int i, uint32_t rows);
void msi_inbox_lease_drop(msi_inbox *inbox, uint32_t lane, int i);

/* Must a lease of this range be given back after one request? The upper half of
 * the pool is lent so: however the lower half is split among clients that keep
 * theirs, the largest request will fit again, and nobody waits for ever. */
int msi_inbox_lease_once(const msi_inbox *inbox, msi_range range);

/* Begins a reply: its slot, with the reply header cleared. */
int msi_inbox_reply_begin(msi_inbox *inbox, uint32_t lane, uint64_t sequence, msi_slot **slot);

/* Ends it: payload_bytes of slot->output belong to it. Publishes it to the client. */
int msi_inbox_reply_end(msi_inbox *inbox, uint32_t lane, uint64_t sequence, size_t payload_bytes);

/* The reply to a request of 0 rows. */
int msi_inbox_reply_empty(msi_inbox *inbox, uint32_t lane, uint64_t sequence, uint16_t generation);

/* A whole reply with no rows: how a request ended, and why. */
int msi_inbox_reply(msi_inbox *inbox, uint32_t lane, uint64_t sequence, int code, const char *text);

static inline uint8_t *msi_inbox_input(const msi_inbox *inbox, int i, uint32_t row) {
  return inbox->memory + inbox->layout.inputs_at[i] + row * inbox->layout.inputs.row_bytes[i];
}

static inline uint8_t *msi_inbox_output(const msi_inbox *inbox, int i, uint32_t row) {
  return inbox->memory + inbox->layout.outputs_at[i] + row * inbox->layout.outputs.row_bytes[i];
}

#endif
