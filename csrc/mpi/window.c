#define _GNU_SOURCE
#include "mpi/window.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "mpi/failure.h"

enum { REPLY_TAG = 1 }; /* of a rank's first service; its others have the next ones */

static const size_t PIECE = (size_t)1 << 30; /* MPI counts are int */

int msi_window_transport(const msi_world *world, int client, int head) {
  if (world->force_rma || world->nodes[client] != world->nodes[head]) return MPISERVE_RMA;
  return MPISERVE_SHARED;
}

/* Which transports does the world need? The same answer on every rank. */
static void find_used(msi_window *window) {
  const msi_world *world = window->world;
  for (int h = 0; h < world->n_heads; h++)
    for (int r = 0; r < world->size; r++)
      if (world->roles[r] == MPISERVE_SIMULATION)
        window->used[msi_window_transport(world, r, world->heads[h].rank)] = 1;
}

/* Ranks of one node must have equal info, and each its own pages. */
static int open_shared(msi_window *window, size_t bytes) {
  MPI_Info info;
  MPI_Info_create(&info);
  MPI_Info_set(info, "alloc_shared_noncontig", "true");
  int failed =
      MPI_Win_allocate_shared((MPI_Aint)bytes, 1, info, window->world->node,
                              &window->memory[MPISERVE_SHARED], &window->win[MPISERVE_SHARED]);
  MPI_Info_free(&info);
  return failed ? msi_mpi_error(failed, "MPI_Win_allocate_shared") : MPISERVE_OK;
}

/* MPI_Win_allocate and not MPI_Win_create: on one node the common
 * implementations make progress for a busy target only in the former. */
static int open_rma(msi_window *window, size_t bytes) {
  int failed = MPI_Win_allocate((MPI_Aint)bytes, 1, MPI_INFO_NULL, window->world->comm,
                                &window->memory[MPISERVE_RMA], &window->win[MPISERVE_RMA]);
  return failed ? msi_mpi_error(failed, "MPI_Win_allocate") : MPISERVE_OK;
}

/* One access epoch from open to close: nobody else ever locks, hence NOCHECK. */
static int begin_epoch(msi_window *window, int transport) {
  MPI_Win_set_errhandler(window->win[transport], MPI_ERRORS_RETURN);
  int failed = MPI_Win_lock_all(MPI_MODE_NOCHECK, window->win[transport]);
  return failed ? msi_mpi_error(failed, "MPI_Win_lock_all") : MPISERVE_OK;
}

/* Messages have a communicator of their own, so that none is mistaken. */
static int open_replies(msi_window *window) {
  int failed = MPI_Comm_dup(window->world->comm, &window->replies);
  return failed ? msi_mpi_error(failed, "MPI_Comm_dup") : MPISERVE_OK;
}

/* A window that one rank could not allocate is an error on all ranks. */
static int agree(msi_window *window, int code, const size_t bytes[MSI_TRANSPORTS]) {
  int worst = code, failed;
  failed = MPI_Allreduce(MPI_IN_PLACE, &worst, 1, MPI_INT, MPI_MIN, window->world->comm);
  if (failed) return msi_mpi_error(failed, "MPI_Allreduce");
  if (!code && worst) return msi_error(worst, "another rank could not open its window");
  if (code)
    return msi_error(code,
                     "a window of %zu bytes on one node and %zu between nodes: %s. Less "
                     "max_batch_rows, or more room in /dev/shm, may help",
                     bytes[MPISERVE_SHARED], bytes[MPISERVE_RMA], mpiserve_strerror(code));
  return MPISERVE_OK;
}

static int several_nodes(const msi_world *world) {
  for (int r = 1; r < world->size; r++)
    if (world->nodes[r] != world->nodes[0]) return 1;
  return 0;
}

/* Libraries that fail or hang between nodes, and what mends them. */
static int known_broken(const msi_world *world) {
  const char *library = mpiserve_mpi_runtime(), *osc = getenv("OMPI_MCA_osc");
  if (!strcmp(library, "Open MPI 4.1.4") && (!osc || !*osc))
    return msi_error(MPISERVE_ECONFIG,
                     "one-sided operations of Open MPI 4.1.4 (Debian 12) fail between nodes as it "
                     "comes: set OMPI_MCA_osc=sm,ucx in the environment of all ranks");
  if (!strncmp(library, "MPICH 4.0.", 10) && world->thread_level == MPI_THREAD_MULTIPLE)
    return msi_error(MPISERVE_ETHREAD,
                     "%s hangs between nodes at MPI_THREAD_MULTIPLE: ask for "
                     "MPI_THREAD_SERIALIZED (in Python: import mpiserve before mpi4py.MPI)",
                     library);
  return MPISERVE_OK;
}

static int refuse_broken(const msi_world *world) {
  if (!several_nodes(world)) return MPISERVE_OK;
  int code = known_broken(world), worst = code;
  int failed = MPI_Allreduce(MPI_IN_PLACE, &worst, 1, MPI_INT, MPI_MIN, world->comm);
  if (failed) return msi_mpi_error(failed, "MPI_Allreduce");
  return code || !worst ? code : msi_error(worst, "another rank refuses its MPI library");
}

int msi_window_open(msi_window *window, const msi_world *world,
                    const size_t bytes[MSI_TRANSPORTS]) {
  *window =
      (msi_window){.world = world, .win = {MPI_WIN_NULL, MPI_WIN_NULL}, .replies = MPI_COMM_NULL};
  find_used(window);
  int code = refuse_broken(world);
  if (code) return code;
  if (window->used[MPISERVE_SHARED]) code = open_shared(window, bytes[MPISERVE_SHARED]);
  code = agree(window, code, bytes);
  if (!code && window->used[MPISERVE_RMA])
    code = agree(window, open_rma(window, bytes[MPISERVE_RMA]), bytes);
  for (int t = 0; t < MSI_TRANSPORTS && !code; t++)
    if (window->win[t] != MPI_WIN_NULL) code = begin_epoch(window, t);
  if (!code && window->used[MPISERVE_RMA]) code = open_replies(window);
  return code;
}

/* Windows are freed explicitly: MPICH 5 over UCX warns at finalize otherwise. A communicator with
 * messages that nobody received is not: there MPICH 5 aborts. */
int msi_window_close(msi_window *window) {
  if (!window->world) return MPISERVE_OK;
  if (window->replies != MPI_COMM_NULL && !window->unread) MPI_Comm_free(&window->replies);
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    if (window->win[t] == MPI_WIN_NULL) continue;
    MPI_Win_unlock_all(window->win[t]);
    int failed = MPI_Win_free(&window->win[t]);
    if (failed) return msi_mpi_error(failed, "MPI_Win_free");
  }
  window->world = NULL;
  return MPISERVE_OK;
}

int msi_window_peer(msi_window *window, int head, void **memory) {
  MPI_Group world, node;
  MPI_Aint bytes;
  int rank, unit;
  MPI_Comm_group(window->world->comm, &world);
  MPI_Comm_group(window->world->node, &node);
  MPI_Group_translate_ranks(world, 1, &head, node, &rank);
  MPI_Group_free(&world);
  MPI_Group_free(&node);
  int failed = MPI_Win_shared_query(window->win[MPISERVE_SHARED], rank, &bytes, &unit, memory);
  return failed ? msi_mpi_error(failed, "MPI_Win_shared_query") : MPISERVE_OK;
}

/* The pages that hold a piece of memory. */
static uint8_t *pages_of(uint8_t *memory, size_t *bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (uintptr_t)memory % page;
  *bytes = (*bytes + before + page - 1) / page * page;
  return memory - before;
}

/* mremap with an old size of 0 maps the pages of a shared mapping once more. */
uint8_t *msi_window_alias(uint8_t *memory, size_t bytes) {
#ifdef __linux__
  uint8_t *pages = pages_of(memory, &bytes);
  void *alias = mremap(pages, 0, bytes, MREMAP_MAYMOVE);
  if (alias != MAP_FAILED) return (uint8_t *)alias + (memory - pages);
#endif
  return memory;
}

void msi_window_unalias(uint8_t *alias, size_t bytes) { munmap(pages_of(alias, &bytes), bytes); }

/* Every operation passes here: the count that shows who was ever a target. */
static MPI_Win aim(msi_window *window, int target) {
  window->operations++;
  window->to_simulation += window->world->roles[target] == MPISERVE_SIMULATION;
  return window->win[MPISERVE_RMA];
}

int msi_window_put(msi_window *window, int head, size_t at, const void *from, size_t bytes) {
  const char *source = from;
  while (bytes) {
    size_t piece = bytes < PIECE ? bytes : PIECE;
    int failed = MPI_Put(source, (int)piece, MPI_BYTE, head, (MPI_Aint)at, (int)piece, MPI_BYTE,
                         aim(window, head));
    if (failed) return msi_mpi_error(failed, "MPI_Put");
    source += piece;
    at += piece;
    bytes -= piece;
  }
  return MPISERVE_OK;
}

int msi_window_get(msi_window *window, int head, size_t at, void *to, size_t bytes) {
  char *target = to;
  while (bytes) {
    size_t piece = bytes < PIECE ? bytes : PIECE;
    int failed = MPI_Get(target, (int)piece, MPI_BYTE, head, (MPI_Aint)at, (int)piece, MPI_BYTE,
                         aim(window, head));
    if (failed) return msi_mpi_error(failed, "MPI_Get");
    target += piece;
    at += piece;
    bytes -= piece;
  }
  return MPISERVE_OK;
}

int msi_window_flush(msi_window *window, int head) {
  int failed = MPI_Win_flush(head, aim(window, head));
  return failed ? msi_mpi_error(failed, "MPI_Win_flush") : MPISERVE_OK;
}

/* From one head and not from MPI_ANY_SOURCE: of such receives MPICH 5.0.2 over UCX (TCP) completes
 * some; into others it stores the message of another node and never says that it has come. */
int msi_window_post_recv(msi_window *window, int head, int service_index, void *message,
                         size_t bytes, MPI_Request *request) {
  int failed = MPI_Irecv(message, (int)bytes, MPI_BYTE, head, REPLY_TAG + service_index,
                         window->replies, request);
  if (msi_failure_note(window->world, window->replies, failed)) return MPISERVE_OK;
  return failed ? msi_mpi_error(failed, "MPI_Irecv") : MPISERVE_OK;
}

/* A message of a dead head never comes; that it is dead the caller sees by other means. */
int msi_window_test_recv(msi_window *window, MPI_Request *request, int *received) {
  if (*request == MPI_REQUEST_NULL) return *received = 0, MPISERVE_OK; /* the head is dead */
  int failed = MPI_Test(request, received, MPI_STATUS_IGNORE);
  if (msi_failure_note(window->world, window->replies, failed)) {
    *received = 0;
    return MPISERVE_OK;
  }
  return failed ? msi_mpi_error(failed, "MPI_Test") : MPISERVE_OK;
}

void msi_window_cancel_recv(MPI_Request *request) {
  if (*request == MPI_REQUEST_NULL) return;
  MPI_Cancel(request);
  MPI_Wait(request, MPI_STATUS_IGNORE);
}

int msi_window_send(msi_window *window, int client, int service_index, const void *message,
                    size_t bytes, MPI_Request *request) {
  /* Our own stores to the slabs must be visible to the Get that will follow. */
  MPI_Win_sync(window->win[MPISERVE_RMA]);
  int failed = MPI_Isend(message, (int)bytes, MPI_BYTE, client, REPLY_TAG + service_index,
                         window->replies, request);
  if (msi_failure_note(window->world, window->replies, failed)) return MPISERVE_OK;
  return failed ? msi_mpi_error(failed, "MPI_Isend") : MPISERVE_OK;
}

int msi_window_send_wait(MPI_Request *request) {
  int failed = MPI_Wait(request, MPI_STATUS_IGNORE);
  if (!failed || msi_failure_is_code(failed)) return MPISERVE_OK; /* a dead client needs nothing */
  return msi_mpi_error(failed, "MPI_Wait");
}

int msi_window_sync(msi_window *window) {
  int code = msi_window_progress(window);
  if (code) return code;
  int failed = MPI_Win_sync(window->win[MPISERVE_RMA]);
  return failed ? msi_mpi_error(failed, "MPI_Win_sync") : MPISERVE_OK;
}

int msi_window_progress(msi_window *window) {
  int ignored;
  int failed =
      MPI_Iprobe(MPI_ANY_SOURCE, REPLY_TAG, window->world->comm, &ignored, MPI_STATUS_IGNORE);
  if (msi_failure_note(window->world, window->world->comm, failed)) return MPISERVE_OK;
  return failed ? msi_mpi_error(failed, "MPI_Iprobe") : MPISERVE_OK;
}
