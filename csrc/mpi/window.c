#define _GNU_SOURCE
#include "mpi/window.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/free_memory.h"
#include "mpi/failure.h"
#include "mpi/messages.h"
#include "protocol/slot.h"

enum {
  REPLY_TAG = 1,      /* of a rank's first service; its others have the next ones */
  EXTRA_BYTES = 65536 /* what MPI needs for a rank beside its window */
};

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
      if (msi_world_is_client(world, r))
        window->used[msi_window_transport(world, r, world->heads[h].rank)] = 1;
}

/* ---- this rank's memory --------------------------------------------------------- */

/* What lies in the segment, where each part begins at a page of its own. */
static size_t bytes_of(const msi_window *window, const size_t bytes[MSI_PARTS], int part) {
  int is_of_mpi = part == MPISERVE_RMA && window->world && !window->world->tolerant;
  return is_of_mpi ? 0 : msi_pages(bytes[part]);
}

int msi_window_reserve(msi_window *window, const size_t bytes[MSI_PARTS]) {
  size_t total = 0, at = 0;
  for (int i = 0; i < MSI_PARTS; i++) total += bytes_of(window, bytes, i);
  int code = msi_segment_open(&window->segment, total);
  if (code)
    return msi_error(code,
                     "no memory for requests: %s. Lower max_batch_rows or pool_bytes, or give the "
                     "job more memory",
                     mpiserve_last_error());
  for (int i = 0; i < MSI_PARTS; at += bytes_of(window, bytes, i++))
    window->memory[i] = bytes_of(window, bytes, i) ? window->segment.memory + at : NULL;
  return MPISERVE_OK;
}

/* ---- rma --------------------------------------------------------------------------- */

/* MPI's memory and not a part of the segment: over MPI_Win_create a round trip of 1 KiB took two to
 * four times as long on one node, and up to twice as long between hosts (Open MPI 5.0.11, MPICH
 * 5.0.2). One access epoch from open to close: nobody else ever locks, hence NOCHECK. */
static int allocate(msi_window *window, size_t bytes) {
  int failed = MPI_Win_allocate((MPI_Aint)bytes, 1, MPI_INFO_NULL, window->world->comm,
                                &window->memory[MPISERVE_RMA], &window->win);
  if (failed) return msi_mpi_error(failed, "MPI_Win_allocate");
  MPI_Win_set_errhandler(window->win, MPI_ERRORS_RETURN);
  failed = MPI_Win_lock_all(MPI_MODE_NOCHECK, window->win);
  return failed ? msi_mpi_error(failed, "MPI_Win_lock_all") : MPISERVE_OK;
}

static int several_nodes(const msi_world *world) {
  for (int r = 1; r < world->size; r++)
    if (world->nodes[r] != world->nodes[0]) return 1;
  return 0;
}

/* Where MPI libraries keep a window that ranks of a node share. */
static const char *folder_of_windows(void) {
  const char *set = getenv("OMPI_MCA_osc_sm_backing_directory");
  return set && *set ? set : "/dev/shm";
}

static int too_little_room(uint64_t needed, uint64_t room) {
  return msi_error(
      MPISERVE_ENOMEM,
      "no memory for requests: %" PRIu64 " bytes are needed and %" PRIu64
      " bytes are free in %s, where MPI keeps what MPISERVE_TRANSPORT=rma needs. Lower "
      "max_batch_rows or pool_bytes, or make it larger (docker run --shm-size)",
      needed, room, folder_of_windows());
}

/* With too little room Open MPI (5.0.11) never comes back from MPI_Win_allocate, and MPICH (5.0.2)
 * is killed by SIGBUS later. Between nodes it depends on the network whether that room is needed.
 */
static int check_room(msi_world *world, size_t bytes) {
  uint64_t mine = bytes, *all = calloc((size_t)world->size, sizeof *all);
  int code = all ? MPISERVE_OK : msi_error(MPISERVE_ENOMEM, "no memory for %d ranks", world->size);
  code = msi_world_agree(world, code);
  if (!code) code = msi_world_gather(world, &mine, all, sizeof mine, "mpiserve_open");
  if (code == MPISERVE_ETIMEOUT) return code; /* MPI may still write there */
  uint64_t room = msi_free_memory_in(folder_of_windows()), needed = 0;
  for (int r = 0; r < world->size && !code; r++) needed += all[r] + EXTRA_BYTES;
  free(all);
  if (!code && !several_nodes(world) && needed > room) code = too_little_room(needed, room);
  return msi_world_agree(world, code);
}

/* As mpiserve's own memory, it is there before the first request, or open fails. */
static int fill(msi_window *window, msi_world *world, size_t bytes) {
  int code = bytes ? msi_segment_fill(window->memory[MPISERVE_RMA], bytes) : MPISERVE_OK;
  if (code) msi_error(code, "no memory for requests: %s", mpiserve_last_error());
  code = msi_world_agree(world, code);
  if (code) msi_window_close(window);
  return code;
}

static int open_win(msi_window *window, msi_world *world, size_t bytes) {
  int code = check_room(world, bytes);
  if (!code) code = msi_world_agree(world, allocate(window, bytes));
  return code ? code : fill(window, world, bytes);
}

/* Replies have a communicator of their own, so that none is mistaken. */
static int open_rma(msi_window *window, msi_world *world, size_t bytes) {
  int failed = MPI_Comm_dup(world->comm, &window->replies);
  int code = failed ? msi_mpi_error(failed, "MPI_Comm_dup") : MPISERVE_OK;
  if (!world->tolerant) return code ? code : open_win(window, world, bytes);
  return msi_world_agree(world, code ? code : msi_messages_open(window, bytes));
}

/* ---- the memory of others ---------------------------------------------------------- */

static int is_peer(const msi_world *world, int rank) {
  for (int h = 0; h < world->n_heads; h++)
    if (world->heads[h].rank == rank)
      return msi_window_transport(world, world->rank, rank) == MPISERVE_SHARED;
  return 0;
}

/* What a rank tells of its memory. */
typedef struct offer {
  msi_segment_id id;
  uint64_t shared; /* bytes of the part for clients on its node, which comes first */
} offer;

static int map_peer(msi_window *window, int rank, const offer *theirs) {
  msi_peer *peer = &window->peers[window->n_peers];
  int code = msi_segment_attach(&peer->segment, &theirs->id, theirs->shared);
  if (code)
    return msi_error(code, "rank %d: %s. Or set MPISERVE_TRANSPORT=rma", rank,
                     mpiserve_last_error());
  peer->rank = rank;
  window->n_peers++;
  return MPISERVE_OK;
}

static int map_peers(msi_window *window, const offer *offers) {
  const msi_world *world = window->world;
  int code = MPISERVE_OK;
  if (world->role == MPISERVE_INFERENCE) return code;
  window->peers = calloc((size_t)world->n_heads, sizeof *window->peers);
  if (!window->peers) return msi_error(MPISERVE_ENOMEM, "no memory for %d heads", world->n_heads);
  for (int r = 0; r < world->size && !code; r++)
    if (is_peer(world, r)) code = map_peer(window, r, &offers[r]);
  return code;
}

static int exchange_memory(msi_window *window, msi_world *world, size_t shared, offer *offers) {
  offer mine = {msi_segment_identify(&window->segment), shared};
  int code = msi_world_gather(world, &mine, offers, sizeof mine, "mpiserve_open");
  return code ? code : msi_world_agree(world, map_peers(window, offers));
}

int msi_window_peer(msi_window *window, int head, uint8_t **memory) {
  for (int i = 0; i < window->n_peers; i++) {
    *memory = window->peers[i].segment.memory;
    if (window->peers[i].rank == head) return MPISERVE_OK;
  }
  return msi_error(MPISERVE_ESTATE, "the memory of rank %d is not mapped", head);
}

void msi_window_keep(msi_window *window, int head) {
  for (int i = 0; i < window->n_peers; i++)
    if (window->peers[i].rank == head) window->peers[i].kept = 1;
}

/* ---- open and close ------------------------------------------------------------------ */

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

static int prepare(msi_window *window, const size_t bytes[MSI_PARTS], const offer *offers) {
  const msi_world *world = window->world;
  if (!offers) return msi_error(MPISERVE_ENOMEM, "no memory for %d ranks", world->size);
  int code = several_nodes(world) ? known_broken(world) : MPISERVE_OK;
  return code ? code : msi_window_reserve(window, bytes);
}

int msi_window_open(msi_window *window, msi_world *world, const size_t bytes[MSI_PARTS]) {
  *window = (msi_window){.world = world, .win = MPI_WIN_NULL, .replies = MPI_COMM_NULL};
  find_used(window);
  offer *offers =
      calloc((uint32_t)world->size, sizeof *offers); /* gcc 12 warns of a negative one */
  int code = msi_world_agree(world, prepare(window, bytes, offers));
  if (!code && window->used[MPISERVE_RMA]) code = open_rma(window, world, bytes[MPISERVE_RMA]);
  if (!code && window->used[MPISERVE_SHARED])
    code = exchange_memory(window, world, bytes[MPISERVE_SHARED], offers);
  if (code != MPISERVE_ETIMEOUT) free(offers); /* else MPI may still write there */
  return code;
}

/* Windows are freed explicitly: MPICH 5 over UCX warns at finalize otherwise. A communicator with
 * messages that nobody received is not: there MPICH 5 aborts. */
int msi_window_close(msi_window *window) {
  if (!window->world) return MPISERVE_OK;
  if (window->replies != MPI_COMM_NULL && !window->unread) MPI_Comm_free(&window->replies);
  msi_messages_close(window);
  if (window->win == MPI_WIN_NULL) return MPISERVE_OK;
  MPI_Win_unlock_all(window->win);
  int failed = MPI_Win_free(&window->win);
  return failed ? msi_mpi_error(failed, "MPI_Win_free") : MPISERVE_OK;
}

void msi_window_unmap(msi_window *window) {
  for (int i = 0; i < window->n_peers; i++)
    if (!window->peers[i].kept) msi_segment_close(&window->peers[i].segment);
  free(window->peers);
  window->peers = NULL;
  window->n_peers = 0;
  msi_segment_close(&window->segment);
  window->world = NULL;
}

/* Every operation passes here: the count that shows who was ever a target. */
static MPI_Win aim(msi_window *window, int target) {
  window->operations++;
  window->to_simulation += msi_world_is_client(window->world, target);
  return window->win;
}

static int put(msi_window *window, int head, size_t at, const void *from, size_t bytes) {
  MPI_Win win = aim(window, head);
  if (window->messages) return msi_messages_put(window, head, at, from, bytes);
  int failed = MPI_Put(from, (int)bytes, MPI_BYTE, head, (MPI_Aint)at, (int)bytes, MPI_BYTE, win);
  return failed ? msi_mpi_error(failed, "MPI_Put") : MPISERVE_OK;
}

int msi_window_put(msi_window *window, int head, size_t at, const void *from, size_t bytes) {
  const char *source = from;
  while (bytes) {
    size_t piece = bytes < PIECE ? bytes : PIECE;
    int code = put(window, head, at, source, piece);
    if (code) return code;
    source += piece;
    at += piece;
    bytes -= piece;
  }
  return MPISERVE_OK;
}

static int get(msi_window *window, int head, int reader, size_t at, void *to, size_t bytes) {
  MPI_Win win = aim(window, head);
  if (window->messages) return msi_messages_get(window, head, reader, at, to, bytes);
  int failed = MPI_Get(to, (int)bytes, MPI_BYTE, head, (MPI_Aint)at, (int)bytes, MPI_BYTE, win);
  return failed ? msi_mpi_error(failed, "MPI_Get") : MPISERVE_OK;
}

int msi_window_get(msi_window *window, int head, int reader, size_t at, void *to, size_t bytes) {
  char *target = to;
  while (bytes) {
    size_t piece = bytes < PIECE ? bytes : PIECE;
    int code = get(window, head, reader, at, target, piece);
    if (code) return code;
    target += piece;
    at += piece;
    bytes -= piece;
  }
  return MPISERVE_OK;
}

int msi_window_flush(msi_window *window, int head) {
  MPI_Win win = aim(window, head);
  if (window->messages) return msi_messages_flush(window, head);
  int failed = MPI_Win_flush(head, win);
  return failed ? msi_mpi_error(failed, "MPI_Win_flush") : MPISERVE_OK;
}

int msi_window_read_end(msi_window *window, int head, int reader) {
  if (window->messages) return msi_messages_read_end(window, head, reader);
  return msi_window_flush(window, head);
}

void msi_window_forget(msi_window *window, int head, int reader) {
  if (window->messages) msi_messages_forget(window, head, reader);
}

int64_t msi_window_untaken_since(msi_window *window, int head) {
  return window->messages ? msi_messages_untaken_since(window, head) : 0;
}

/* Nothing orders two Puts. */
int msi_window_order(msi_window *window, int head) {
  return window->messages ? MPISERVE_OK : msi_window_flush(window, head);
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
  if (!window->messages) MPI_Win_sync(window->win);
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
  if (code || window->messages) return code;
  int failed = MPI_Win_sync(window->win);
  return failed ? msi_mpi_error(failed, "MPI_Win_sync") : MPISERVE_OK;
}

int msi_window_progress(msi_window *window) {
  int ignored;
  if (window->messages && window->world->role == MPISERVE_INFERENCE)
    return msi_messages_obey(window);
  int failed =
      MPI_Iprobe(MPI_ANY_SOURCE, REPLY_TAG, window->world->comm, &ignored, MPI_STATUS_IGNORE);
  if (msi_failure_note(window->world, window->world->comm, failed)) return MPISERVE_OK;
  return failed ? msi_mpi_error(failed, "MPI_Iprobe") : MPISERVE_OK;
}
