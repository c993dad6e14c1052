/* rma: the transport between nodes. The client puts requests and rows, and gets rows; the head
 * sends each reply as a message, because a simulation rank is never a target. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "mpi/failure.h"
#include "mpi/transport.h"

enum { MESSAGE_BYTES = sizeof(msi_reply_header) + MSI_EAGER_BYTES };

static size_t slot_at(const msi_path *path, uint64_t sequence) {
  return path->slots_at + (sequence - 1) % MSI_SLOTS * sizeof(msi_slot);
}

static int open_rma(msi_path *path) {
  path->recv = MPI_REQUEST_NULL;
  path->slots = calloc(MSI_SLOTS, sizeof *path->slots);
  path->message = malloc(MESSAGE_BYTES);
  if (path->slots && path->message) return MPISERVE_OK;
  return msi_error(MPISERVE_ENOMEM, "no memory for a lane");
}

static void close_rma(msi_path *path) {
  path->window->unread |= path->replies_to_come;
  msi_window_cancel_recv(&path->recv);
  free(path->slots);
  free(path->message);
  path->slots = NULL;
  path->message = NULL;
}

/* A receive is there before its message, and none that nobody answers. */
static int post_recv(msi_path *path) {
  if (path->recv != MPI_REQUEST_NULL) return MPISERVE_OK;
  return msi_window_post_recv(path->window, path->head, path->service_index, path->message,
                              MESSAGE_BYTES, &path->recv);
}

/* The flush pushes the doorbell out (MPI may keep a Put back). */
static int ring(msi_path *path, uint64_t sequence) {
  uint8_t doorbell = (uint8_t)sequence;
  int code = msi_window_order(path->window, path->head);
  if (!code) code = msi_window_put(path->window, path->head, path->doorbell_at, &doorbell, 1);
  return code ? code : msi_window_flush(path->window, path->head);
}

static int post(msi_path *path, uint64_t sequence, size_t bytes) {
  int code =
      msi_window_put(path->window, path->head, slot_at(path, sequence),
                     &path->slots[(sequence - 1) % MSI_SLOTS], sizeof(msi_request_header) + bytes);
  if (!code) code = post_recv(path);
  if (!code) code = ring(path, sequence);
  path->replies_to_come += !code;
  return code;
}

static int cancel(msi_path *path, uint64_t sequence) {
  const msi_slot *slot = &path->slots[(sequence - 1) % MSI_SLOTS];
  uint32_t marks = atomic_load_explicit(&slot->request.cancelled, memory_order_relaxed);
  int code = msi_window_put(path->window, path->head,
                            slot_at(path, sequence) + offsetof(msi_slot, request.cancelled), &marks,
                            sizeof marks);
  return code ? code : msi_window_flush(path->window, path->head);
}

static void deliver(msi_path *path) {
  msi_reply_header header;
  memcpy(&header, path->message, sizeof header);
  uint64_t sequence = atomic_load_explicit(&header.sequence, memory_order_relaxed);
  memcpy(&path->slots[(sequence - 1) % MSI_SLOTS].reply, path->message, MESSAGE_BYTES);
}

static int progress(msi_path *path) {
  int code = MPISERVE_OK, received = 1;
  while (!code && path->replies_to_come) {
    code = msi_window_test_recv(path->window, &path->recv, &received);
    if (code || !received) break;
    deliver(path);
    if (--path->replies_to_come) code = post_recv(path);
  }
  return code;
}

static int write_rows(msi_path *path, size_t at, const void *from, size_t bytes) {
  return msi_window_put(path->window, path->head, at, from, bytes);
}

static int read_rows(msi_path *path, size_t at, void *to, size_t bytes) {
  return msi_window_get(path->window, path->head, path->service_index, at, to, bytes);
}

static int ask_magic(msi_path *path) {
  path->magic = 0;
  path->is_reading = 1;
  return msi_window_get(path->window, path->head, path->service_index,
                        offsetof(msi_section_header, magic), &path->magic, sizeof path->magic);
}

/* Of a dead head success is reported too, and nothing fetched: so a word that is known is fetched
 * with the rows. */
static int read_end(msi_path *path) {
  int code = path->is_reading ? MPISERVE_OK : ask_magic(path);
  if (!code) code = msi_window_read_end(path->window, path->head, path->service_index);
  if (code == MSI_NOT_YET) return code;
  path->is_reading = 0;
  if (!code && path->magic != MSI_MAGIC) code = MPISERVE_EPEER;
  if (code != MPISERVE_EPEER) return code;
  msi_failure_mark(path->window->world, path->head);
  return msi_error(MPISERVE_EPEER, "inference rank %d has died before its results were fetched",
                   path->head);
}

static void forget(msi_path *path) {
  path->is_reading = 0;
  msi_window_forget(path->window, path->head, path->service_index);
}

static int reply_end(msi_window *window, int client, int service_index, msi_slot *slot,
                     size_t bytes, MPI_Request *send) {
  return msi_window_send(window, client, service_index, &slot->reply, sizeof slot->reply + bytes,
                         send);
}

const msi_transport msi_rma = {.number = MPISERVE_RMA,
                               .open = open_rma,
                               .close = close_rma,
                               .post = post,
                               .cancel = cancel,
                               .progress = progress,
                               .write = write_rows,
                               .read = read_rows,
                               .read_end = read_end,
                               .forget = forget,
                               .sync = msi_window_sync,
                               /* The last message from this slot has been received (else the
                                * client would not have used the slot again), but MPI may not
                                * have completed its send. */
                               .reply_begin = msi_window_send_wait,
                               .reply_end = reply_end};
