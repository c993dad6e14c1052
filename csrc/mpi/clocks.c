#include "mpi/clocks.h"

enum { PING = 18, PONG = 19, ROUNDS = 200 };

/* A round trip that is good enough; the time for all nodes, and at least for each. */
static const int64_t GOOD_NS = 60000, BUDGET_NS = 2000000000, LEAST_NS = 50000000;
static const int64_t PATIENCE_NS = 10000000000;

/* The naps are short: who sleeps for long answers late, who spins for long loses its core to others
 * for milliseconds. */
static const msi_backoff BACKOFF = {
    .spin_ns = 4000, .most_spin_ns = 4000, .yield_ns = 100000, .sleep_ns = 20000};

/* A rank that never answers has died: then nobody waits for it here for ever. */
static int is_done(MPI_Request *request, msi_backoff backoff) {
  msi_wait wait = {0};
  int64_t deadline = 0;
  for (;;) {
    int done;
    if (MPI_Test(request, &done, MPI_STATUS_IGNORE)) return 0;
    if (done) return 1;
    if (!msi_wait_pause(&wait, &backoff, NULL)) continue;
    if (!deadline) deadline = msi_now() + PATIENCE_NS;
    if (msi_now() < deadline) continue;
    return 0;
  }
}

static int receive(msi_world *world, int from, int tag, void *data, int bytes) {
  MPI_Request request;
  if (MPI_Irecv(data, bytes, MPI_BYTE, from, tag, world->comm, &request)) return 0;
  if (is_done(&request, BACKOFF)) return 1;
  MPI_Cancel(&request); /* ends also one that has come meanwhile */
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  return 0;
}

/* ---- rank 0 and the first rank of another node ---------------------------------------- */

static int is_enough(int round, int64_t spent_ns, int64_t limit_ns, int64_t round_trip_ns) {
  return spent_ns > limit_ns || (round > ROUNDS && round_trip_ns < GOOD_NS);
}

/* The messages that were least delayed, one each way, bound the difference of the clocks: it is in
 * the middle. They need not be of one round: where ranks share cores few of many messages are not
 * delayed, and hardly a pair of them. */
static int ask(msi_world *world, int rank, int64_t limit_ns, msi_clock *clock) {
  const msi_clock question = {0};
  int64_t first = 0, theirs = 0, out = INT64_MAX, back = INT64_MAX;
  for (int i = 0;; i++) {
    int64_t sent = msi_now();
    if (i == 1) first = sent; /* the other one may have come late */
    if (i > 1 && is_enough(i, sent - first, limit_ns, out + back)) break;
    if (MPI_Send(&question, sizeof question, MPI_BYTE, rank, PING, world->comm)) return 0;
    if (!receive(world, rank, PONG, &theirs, sizeof theirs)) return 0;
    int64_t now = msi_now();
    if (theirs - sent < out) out = theirs - sent;
    if (now - theirs < back) back = now - theirs;
  }
  *clock = (msi_clock){.at_ns = theirs, .offset_ns = (back - out) / 2, .round_trip_ns = out + back};
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
  int nodes = 0;
  for (int r = 0; r < world->size; r++) nodes += world->nodes[r] == r;
  int64_t share = BUDGET_NS / nodes, limit = share > LEAST_NS ? share : LEAST_NS;
  for (int r = 1; r < world->size; r++) {
    msi_clock clock = {0};
    if (world->nodes[r] == r && ask(world, r, limit, &clock)) tell(world, r, &clock);
  }
}

void msi_clocks_measure(msi_world *world, msi_clock *clock) {
  MPI_Request request;
  *clock = (msi_clock){0};
  if (world->pair) { /* on one node */
    clock->at_ns = msi_now();
    return;
  }
  if (world->rank == 0) {
    ask_all(world);
    clock->at_ns = msi_now();
  } else if (world->nodes[world->rank] == world->rank) {
    answer(world, clock);
  }
  /* The others of the node sleep meanwhile, where MPI_Bcast would burn their cores. One that gives
   * up leaves it to MPI, which may write the clock later. */
  if (MPI_Ibcast(clock, sizeof *clock, MPI_BYTE, 0, world->node, &request)) return;
  is_done(&request, world->backoff);
}
