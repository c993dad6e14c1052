/* transport: how bytes get from a client to a head and back. Each transport is a table of
 * functions; client and head call these and know nothing of the ways.
 *
 *   shared  both are on one node: loads, stores and a futex
 *   rma     MPI Put and Get with flush; a reply is a message
 *
 * To add a transport: a number in mpiserve_transport, a table here, its memory in window.c. */
#ifndef MSI_TRANSPORT_H
#define MSI_TRANSPORT_H

#include "base/wait.h"
#include "mpi/window.h"
#include "protocol/slot.h"

/* A client's way to its lane in the memory of a head. */
typedef struct msi_path {
  const struct msi_transport *transport;
  msi_window *window;
  int head;                     /* world rank */
  int service_index;            /* among the services of that rank */
  size_t doorbell_at, slots_at; /* of the lane, in the memory of the head */
  msi_slot *slots;              /* shared: the lane itself; rma: a copy of it */
  uint8_t *memory;              /* shared: that of the head; rma: NULL */
  uint8_t *message;             /* rma: where the next reply goes */
  MPI_Request recv;             /* rma: of this message, posted while replies are to come */
  int replies_to_come;          /* rma */
  int is_reading;               /* rma: read_end() has asked for magic, */
  uint32_t magic;               /* which arrives here */
} msi_path;

/* A function that is NULL has nothing to do. Those that return int return a code. */
typedef struct msi_transport {
  int number;    /* mpiserve_transport */
  int same_node; /* of client and head: one clock, one memory, and each can wake the other */

  /* Client: finds or makes the slots. close() is safe after a failed open(). */
  int (*open)(msi_path *path);
  void (*close)(msi_path *path);

  /* Client: a request in its slot, with bytes of payload, becomes visible at the head, payload and
   * header before its doorbell. */
  int (*post)(msi_path *path, uint64_t sequence, size_t bytes);

  /* Client: that a request in its slot is cancelled becomes visible at the head. */
  int (*cancel)(msi_path *path, uint64_t sequence);

  /* Client: brings the replies that have come into the slots. */
  int (*progress)(msi_path *path);

  /* Client: rows of the slabs, at bytes from the begin of the head's memory. They are written
   * before a post(), and are all there after read_end(). write() and read_end() may be MSI_NOT_YET.
   * forget(): nobody wants what is being read from this head. */
  int (*write)(msi_path *path, size_t at, const void *from, size_t bytes);
  int (*read)(msi_path *path, size_t at, void *to, size_t bytes);
  int (*read_end)(msi_path *path);
  void (*forget)(msi_path *path);

  /* Head: sees what clients have written. */
  int (*sync)(msi_window *window);

  /* Head: the slot may be written again, and the reply in it, with bytes of payload, is sent.
   * send is of this slot, for a transport whose replies are messages (reply_begin is not NULL). */
  int (*reply_begin)(MPI_Request *send);
  int (*reply_end)(msi_window *window, int client, int service_index, msi_slot *slot, size_t bytes,
                   MPI_Request *send);
} msi_transport;

extern const msi_transport msi_shared, msi_rma;

/* The same, of a session that is captured: its requests tell the time step of their client. */
const msi_transport *msi_transport_with_step(int number);

/* By its number. */
static inline const msi_transport *msi_transport_at(int number) {
  return number == MPISERVE_SHARED ? &msi_shared : &msi_rma;
}

#endif
