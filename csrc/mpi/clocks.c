#include "mpi/clocks.h"

enum { PING = 18, PONG = 19, ROUNDS = 200, LEAST_ROUNDS = 20 };

static const int64_t ENOUGH_NS = 50000000, PATIENCE_NS = 10000000000;

/* A rank that never answers has died: then nobody waits for it here for ever. */
static int is_done(msi_world *world, MPI_Request *request) {
  msi_wait wait = {0};
  int64_t deadline = 0;
  for (;;) {
    int done;
    if (MPI_Test(request, &done, MPI_STATUS_IGNORE)) return 0;
    if (done) return 1;
    if (!msi_wait_pause(&wait, &world->backoff, NULL)) continue;
    if (!deadline) deadline = msi_now() + PATIENCE_NS;
    if (msi_now() < deadline) continue;
    return 0;
  }
}

static int receive(msi_world *world, int from, int tag, void *data, int bytes) {
  MPI_Request request;
  if (MPI_Irecv(data, bytes, MPI_BYTE, from, tag, world->comm, &request)) return 0;
  if (is_done(world, &request)) return 1;
  MPI_Cancel(&request); /* ends also one that has come meanwhile */
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  return 0;
}

/* ---- rank 0 and the first rank of another node ---------------------------------------- */

/* The message that came back soonest was least delayed, both ways: the other clock was read in the
 * middle. */
static int ask(msi_world *world, int rank, msi_clock *best) {
  msi_clock none = {0};
  int64_t first = 0;
  for (int i = 0; i < ROUNDS; i++) {
    int64_t theirs, sent = msi_now();
    if (i == 1) first = sent; /* the other one may have come late */
    if (i > LEAST_ROUNDS && sent - first > ENOUGH_NS) break;
    if (MPI_Send(&none, sizeof none, MPI_BYTE, rank, PING, world->comm)) return 0;
    if (!receive(world, rank, PONG, &theirs, sizeof theirs)) return 0;
    int64_t took = msi_now() - sent;
    if (!best->at_ns || took < best->round_trip_ns)
      *best = (msi_clock){theirs, sent + took / 2 - theirs, took};
  }
  return 1;
}

static void tell(const msi_world *world, int rank, const msi_clock *clock) {
  MPI_Send(clock, sizeof *clock, MPI_BYTE, rank, PING, world->comm);
}

/* A clock that was measured ends the questions. */
static void answer(msi_world *world, msi_clock *clock) {
  while (receive(world, 0, PING, clock, sizeof *clock) && !clock->at_ns) {
    int64_t now = msi_now();
    if (MPI_Send(&now, sizeof now, MPI_BYTE, 0, PONG, world->comm)) return;
  }
}

static void ask_all(msi_world *world) {
  for (int r = 1; r < world->size; r++) {
    msi_clock clock = {0};
    if (world->nodes[r] == r && ask(world, r, &clock)) tell(world, r, &clock);
  }
}

void msi_clocks_measure(msi_world *world, msi_clock *clock) {
  MPI_Request request;
  *clock = (msi_clock){0};
  if (world->rank == 0) {
    ask_all(world);
    clock->at_ns = msi_now();
  } else if (world->nodes[world->rank] == world->rank) {
    answer(world, clock);
  }
  /* The others of the node sleep meanwhile, where MPI_Bcast would burn their cores. One that gives
   * up leaves it to MPI, which may write the clock later. */
  if (MPI_Ibcast(clock, sizeof *clock, MPI_BYTE, 0, world->node, &request)) return;
  is_done(world, &request);
}
