/* messages: put, get and flush of the rma transport by messages, for a world that goes on after a
 * death. There MPI's own may wait for ever (Open MPI 5.0.11, osc/rdma over TCP): MPI_Win_flush if
 * any target has died while it owed an answer, and the first MPI_Put to a living rank of a node
 * whose first rank has died. A message to a dead rank ends with an error.
 *
 * Operations are packed into messages that the head obeys in the order of MPI, one client's in the
 * order of its calls. One thread at a time, the one that may call MPI. */
#ifndef MSI_MESSAGES_H
#define MSI_MESSAGES_H

#include "mpi/window.h"

/* Collective over the world. The head's memory is its part of the window for rma. */
int msi_messages_open(msi_window *window, size_t bytes);

/* Collective over the world; no operation may be under way. Safe if there are none. */
void msi_messages_close(msi_window *window);

/* Client: as the functions of window.h. What was put is visible at the head before what is put
 * later. To a dead head, put and flush succeed. None waits long for a head that takes nothing. */
int msi_messages_put(msi_window *window, int head, size_t at, const void *from, size_t bytes);
int msi_messages_get(msi_window *window, int head, int reader, size_t at, void *to, size_t bytes);
int msi_messages_flush(msi_window *window, int head);
int msi_messages_read_end(msi_window *window, int head, int reader);
void msi_messages_forget(msi_window *window, int head, int reader);
int64_t msi_messages_untaken_since(msi_window *window, int head);

/* Head: does what clients have asked for. */
int msi_messages_obey(msi_window *window);

#endif
