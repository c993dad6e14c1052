/* shared: the transport within one node. */
#define _GNU_SOURCE
#include "mpi/transport.h"

static int open_shared(msi_path *path) {
  int code = msi_window_peer(path->window, path->head, &path->memory);
  if (!code) path->slots = (msi_slot *)(path->memory + path->slots_at);
  return code;
}

/* The release store puts payload and header before the doorbell. The head sleeps in the first
 * section of its rank. */
static int post(msi_path *path, uint64_t sequence, size_t bytes) {
  (void)bytes;
  msi_section_header *header = (msi_section_header *)path->memory;
  atomic_store_explicit((_Atomic uint8_t *)(path->memory + path->doorbell_at), (uint8_t)sequence,
                        memory_order_release);
  msi_wait_wake(&header->asleep, &header->asleep);
  return MPISERVE_OK;
}

static int write_rows(msi_path *path, size_t at, const void *from, size_t bytes) {
  msi_copy(path->memory + at, from, bytes);
  return MPISERVE_OK;
}

static int read_rows(msi_path *path, size_t at, void *to, size_t bytes) {
  msi_copy(to, path->memory + at, bytes);
  return MPISERVE_OK;
}

/* The client looks at the sequence, which the caller has stored last, and may sleep there. */
static int reply_end(msi_window *window, int client, int service_index, msi_slot *slot,
                     size_t bytes, MPI_Request *send) {
  (void)window, (void)client, (void)service_index, (void)bytes, (void)send;
  msi_wait_wake(msi_low_half(&slot->reply.sequence), &slot->request.asleep);
  return MPISERVE_OK;
}

const msi_transport msi_shared = {.number = MPISERVE_SHARED,
                                  .same_node = 1,
                                  .open = open_shared,
                                  .post = post,
                                  .write = write_rows,
                                  .read = read_rows,
                                  .reply_end = reply_end};
