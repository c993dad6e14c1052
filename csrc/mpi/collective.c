#include "mpi/collective.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "mpi/failure.h"
#include "mpi/pair.h"

enum { MOST_NAMED = 8 }; /* ranks of a text */

int msi_mpi_error(int mpi_code, const char *call) {
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length;
  MPI_Error_string(mpi_code, text, &length);
  return msi_error(MPISERVE_EMPI, "%s: %s", call, text);
}

/* ---- limits ------------------------------------------------------------------------ */

/* Seconds; normal if there is no text, 0 if it is no positive number. */
static double limit_of(const char *text, double normal) {
  if (!text || !*text) return normal;
  char *end;
  double seconds = strtod(text, &end);
  return *end || !(seconds > 0) ? 0 : seconds;
}

static double open_limit(void) { return limit_of(getenv("MPISERVE_OPEN_TIMEOUT"), 600); }

static double close_limit(void) { return limit_of(getenv("MPISERVE_CLOSE_TIMEOUT"), 30); }

/* The time after which open and publish give up on a rank that does not come. */
static int64_t open_deadline(void) {
  double seconds = open_limit();
  return msi_deadline(seconds > 0 ? seconds : 600);
}

double msi_world_close_limit(void) {
  double seconds = close_limit();
  return seconds > 0 ? seconds : 30;
}

const char *msi_collective_wrong_limit(void) {
  if (!(open_limit() > 0)) return "MPISERVE_OPEN_TIMEOUT is to be a number of seconds above 0";
  if (!(close_limit() > 0)) return "MPISERVE_CLOSE_TIMEOUT is to be a number of seconds above 0";
  return NULL;
}

/* ---- waits ------------------------------------------------------------------------- */

/* Who did not come MPI does not say. After open the inference ranks are known, which publish
 * when they have loaded: the simulation ranks wait for them. */
static int not_all_came(const msi_world *world, const char *what) {
  char ranks[MPISERVE_TEXT_SIZE] = "";
  int named = 0;
  for (int r = 0; world->n_simulation && r < world->size; r++) {
    if (world->roles[r] != MPISERVE_INFERENCE || named == MOST_NAMED) continue;
    size_t n = strlen(ranks);
    snprintf(ranks + n, sizeof ranks - n, named++ ? ", %d" : " %d", r);
  }
  if (named)
    return msi_error(MPISERVE_ETIMEOUT,
                     "rank %d: not every inference rank (%s%s) came to %s in time: is a model "
                     "still loading? (MPISERVE_OPEN_TIMEOUT sets the limit in seconds)",
                     world->rank, ranks + 1, named < MOST_NAMED ? "" : " ...", what);
  return msi_error(MPISERVE_ETIMEOUT,
                   "rank %d: not every rank of the world came to %s in time; does each "
                   "rank take part, by mpiserve_open or with libmpiserve_world.so? "
                   "(MPISERVE_OPEN_TIMEOUT sets the limit in seconds)",
                   world->rank, what);
}

/* A rank that is dead never comes. */
static int has_died(const msi_world *world, const char *what) {
  char text[MPISERVE_TEXT_SIZE] = "";
  msi_failure_name_dead(world, text, sizeof text);
  return msi_error(MPISERVE_EPEER, "rank %d: %s cannot end, because a rank has died: %s",
                   world->rank, what, text);
}

/* Completes a nonblocking collective. Ranks may come minutes apart (models are
 * being loaded), so this sleeps where MPI_Wait would burn a core. */
static int complete(msi_world *world, MPI_Request *request, int64_t deadline, const char *what) {
  msi_wait wait = {0};
  for (;;) {
    int done, failed = MPI_Test(request, &done, MPI_STATUS_IGNORE);
    if (msi_failure_note(world, world->comm, failed)) return has_died(world, what);
    if (failed) return msi_mpi_error(failed, what);
    if (done) return MPISERVE_OK;
    if (!msi_wait_pause(&wait, &world->backoff, NULL)) continue;
    if (world->failure && msi_failure_look(world)) return has_died(world, what);
    if (msi_now() > deadline) return not_all_came(world, what);
  }
}

/* Of a pair: the end of the other process is seen here, also before anybody watches it. */
static int wait_for_other(msi_world *world, int64_t deadline, const char *what) {
  msi_wait wait = {0};
  while (!msi_pair_has_come(world->pair)) {
    if (!msi_wait_pause(&wait, &world->backoff, NULL)) continue;
    if (msi_pair_is_alone(world->pair) && !msi_pair_has_come(world->pair))
      return msi_error(MPISERVE_EPEER,
                       "%s cannot end, because the %s process of this session has ended", what,
                       world->role == MPISERVE_SIMULATION ? "inference" : "simulation");
    if (msi_now() > deadline) return not_all_came(world, what);
    if (msi_pair_is_interrupted(world->pair))
      return msi_error(MPISERVE_ECANCELLED, "%s was interrupted", what);
  }
  return MPISERVE_OK;
}

/* ---- what is done together ------------------------------------------------------------ */

static size_t piece_of(size_t bytes, size_t at) {
  size_t left = at < bytes ? bytes - at : 0;
  return left < MSI_PAIR_PIECE ? left : MSI_PAIR_PIECE;
}

/* Of a pair: as many rounds as the larger of both needs, and at least one. */
static int exchange(msi_world *world, const void *mine, size_t bytes, void *theirs,
                    size_t their_bytes, const char *what) {
  const size_t most = bytes > their_bytes ? bytes : their_bytes;
  size_t at = 0;
  do {
    msi_pair_post(world->pair, (const char *)mine + at, piece_of(bytes, at));
    int code = wait_for_other(world, open_deadline(), what);
    if (code) return code;
    msi_pair_read(world->pair, (char *)theirs + at, piece_of(their_bytes, at));
    at += MSI_PAIR_PIECE;
  } while (at < most);
  return MPISERVE_OK;
}

static int exchange_equal(msi_world *world, const void *mine, void *all, size_t bytes,
                          const char *what) {
  const int me = world->rank;
  memcpy((char *)all + (size_t)me * bytes, mine, bytes);
  return exchange(world, mine, bytes, (char *)all + (size_t)!me * bytes, bytes, what);
}

int msi_world_gather(msi_world *world, const void *mine, void *all, size_t bytes,
                     const char *what) {
  MPI_Request request;
  if (world->pair) return exchange_equal(world, mine, all, bytes, what);
  int failed =
      MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Iallgather");
  return complete(world, &request, open_deadline(), what);
}

static int exchange_some(msi_world *world, const void *mine, void *all, const int *counts,
                         const int *offsets, const char *what) {
  const int me = world->rank, other = !me;
  if (counts[me]) memcpy((char *)all + offsets[me], mine, (size_t)counts[me]);
  return exchange(world, mine, (size_t)counts[me], (char *)all + offsets[other],
                  (size_t)counts[other], what);
}

int msi_collective_gather_some(msi_world *world, const void *mine, void *all, const int *counts,
                               const int *offsets, const char *what) {
  MPI_Request request;
  if (world->pair) return exchange_some(world, mine, all, counts, offsets, what);
  int failed = MPI_Iallgatherv(mine, counts[world->rank], MPI_BYTE, all, counts, offsets, MPI_BYTE,
                               world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Iallgatherv");
  return complete(world, &request, open_deadline(), what);
}

static int duplicate(msi_world *world, MPI_Comm comm) {
  MPI_Request request;
  int failed = MPI_Comm_idup(comm, &world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Comm_idup");
  int code = complete(world, &request, open_deadline(), "mpiserve_open");
  if (code) world->comm = MPI_COMM_NULL; /* still in the making: nobody may free it */
  return code;
}

static int duplicate_self(msi_world *world) {
  int failed = MPI_Comm_dup(MPI_COMM_SELF, &world->comm);
  return failed ? msi_mpi_error(failed, "MPI_Comm_dup") : MPISERVE_OK;
}

int msi_collective_duplicate(msi_world *world, MPI_Comm comm) {
  int code = world->pair ? duplicate_self(world) : duplicate(world, comm);
  if (!code) MPI_Comm_set_errhandler(world->comm, MPI_ERRORS_RETURN);
  return code;
}

typedef struct shared_error {
  int code;
  char text[MPISERVE_TEXT_SIZE];
} shared_error;

static int broadcast(msi_world *world, int rank, shared_error *error) {
  shared_error both[2];
  if (world->pair) {
    int code = exchange_equal(world, error, both, sizeof *error, "mpiserve_open");
    if (!code) *error = both[rank];
    return code;
  }
  int failed = MPI_Bcast(error, sizeof *error, MPI_BYTE, rank, world->comm);
  return failed ? msi_mpi_error(failed, "MPI_Bcast") : MPISERVE_OK;
}

int msi_collective_share_error(msi_world *world, int rank, int code, const char *text) {
  shared_error error = {.code = code};
  if (rank == world->rank) snprintf(error.text, sizeof error.text, "%s", text);
  int failed = broadcast(world, rank, &error);
  if (failed) return failed;
  if (rank == world->rank) return msi_error(error.code, "%s", error.text);
  return msi_error(error.code, "rank %d: %s", rank, error.text);
}

/* The first rank that failed, or the number of ranks; in memory where MPI may write later. */
static int find_first(msi_world *world) {
  MPI_Request request;
  int *vote = &world->votes[0], *first = &world->votes[1], both[2];
  if (world->pair) {
    int code = exchange_equal(world, vote, both, sizeof *vote, "mpiserve_open");
    *first = both[0] < both[1] ? both[0] : both[1];
    return code;
  }
  int failed = MPI_Iallreduce(vote, first, 1, MPI_INT, MPI_MIN, world->comm, &request);
  if (failed) return msi_mpi_error(failed, "MPI_Iallreduce");
  return complete(world, &request, open_deadline(), "mpiserve_open");
}

int msi_world_agree(msi_world *world, int code) {
  char text[MPISERVE_TEXT_SIZE];
  world->votes[0] = code ? world->rank : world->size;
  size_t bytes = msi_text_bytes(mpiserve_last_error(), sizeof text - 1);
  snprintf(text, sizeof text, "%.*s", (int)bytes, mpiserve_last_error());
  int late = find_first(world);
  if (late || world->votes[1] == world->size) return late;
  return msi_collective_share_error(world, world->votes[1], code, text);
}
