/* window: the memory of heads, and the only file with MPI_Win_*, Put, Get and flush. Clients on
 * the head's node map its memory; clients elsewhere Put and Get, and each reply to them is
 * a message. See mpi/transport.h.
 *
 * Only inference ranks have memory for others, and only they are targets: a
 * simulation rank may compute for hours and delays nobody. */
#ifndef MSI_WINDOW_H
#define MSI_WINDOW_H

#include "base/segment.h"
#include "mpi/world.h"

/* The memory of a head has a part for each transport, by its number (MPISERVE_SHARED,
 * MPISERVE_RMA), and one for what the head writes for its models alone. All but that of rma, which
 * MPI allocates, lie in one segment. */
enum { MSI_TRANSPORTS = 2, MSI_OWN = MSI_TRANSPORTS, MSI_PARTS };

/* A head on this node whose memory a client has mapped. */
typedef struct msi_peer {
  int rank; /* of the world */
  int kept; /* after close too */
  msi_segment segment;
} msi_peer;

typedef struct msi_messages msi_messages;

typedef struct msi_window {
  const msi_world *world;
  int used[MSI_TRANSPORTS];
  msi_segment segment;        /* this rank's own */
  uint8_t *memory[MSI_PARTS]; /* its parts */
  msi_peer *peers;
  int n_peers;
  MPI_Win win;            /* of the rma transport, */
  msi_messages *messages; /* or NULL, and these: mpi/messages.h */
  MPI_Comm replies;       /* of its replies */
  int unread;             /* some may come that nobody receives any more */
  int64_t step;           /* client: how many time steps have begun */
  int64_t operations, to_simulation;
} msi_window;

/* How a client reaches a head: by the nodes that they are on, or as
 * MPISERVE_TRANSPORT says. Local, and the same at every rank. */
int msi_window_transport(const msi_world *world, int client, int head);

/* Collective over the world. bytes: of each part of this rank's memory (0 on simulation ranks). An
 * error of one rank is that of all. */
int msi_window_open(msi_window *window, msi_world *world, const size_t bytes[MSI_PARTS]);

/* Makes this rank's segment alone. Local. */
int msi_window_reserve(msi_window *window, const size_t bytes[MSI_PARTS]);

/* Collective over the world; no message may be under way. */
int msi_window_close(msi_window *window);

/* Unmaps all memory, this rank's and others'. Local; safe after a failed open, and on a window of
 * zeros. */
void msi_window_unmap(msi_window *window);

/* Client: the memory of a head on this node. Local. */
int msi_window_peer(msi_window *window, int head, uint8_t **memory);

/* Client: the memory of this head stays mapped after close: who still looks at it does not
 * crash. Local. */
void msi_window_keep(msi_window *window, int head);

/* Instead of a code: a head has not answered or taken something yet. Call it again; a write of rows
 * from its beginning. */
enum { MSI_NOT_YET = 2 };

/* Client, rma: write to, or read from, the memory of a head. Complete at the head (put) when
 * msi_window_flush() has returned, or here (get) when msi_window_read_end() has, of the same
 * reader: any number. Only a put of rows is MSI_NOT_YET. */
int msi_window_put(msi_window *window, int head, size_t at, const void *from, size_t bytes);
int msi_window_get(msi_window *window, int head, int reader, size_t at, void *to, size_t bytes);
int msi_window_flush(msi_window *window, int head);
int msi_window_read_end(msi_window *window, int head, int reader);

/* Client, rma: nobody wants what a reader is reading from a head, and nothing of it is written any
 * more. */
void msi_window_forget(msi_window *window, int head, int reader);

/* Client, rma: since when a head has taken nothing of what this rank has sent it; 0: it has taken
 * all, or nobody can know. */
int64_t msi_window_untaken_since(msi_window *window, int head);

/* Client, rma: what is put after this is visible at the head after what was put before. */
int msi_window_order(msi_window *window, int head);

/* Client, rma: begin to receive the next message of a head, the one of its rank's service
 * number service_index, of at most so many bytes; has it come? *request is MPI_REQUEST_NULL again
 * when it has. */
int msi_window_post_recv(msi_window *window, int head, int service_index, void *message,
                         size_t bytes, MPI_Request *request);
int msi_window_test_recv(msi_window *window, MPI_Request *request, int *received);

/* Client, rma: give a receive up, if there is one. */
void msi_window_cancel_recv(MPI_Request *request);

/* Head, rma: begin to send a message; it must not change until *request is
 * complete, for which msi_window_send_wait() waits. */
int msi_window_send(msi_window *window, int client, int service_index, const void *message,
                    size_t bytes, MPI_Request *request);
int msi_window_send_wait(MPI_Request *request);

/* Head, rma: let MPI work, then see what clients have put. */
int msi_window_sync(msi_window *window);

/* Any rank: let MPI work while waiting, for the sake of the caller's own messages. */
int msi_window_progress(msi_window *window);

#endif
