#define _GNU_SOURCE
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/handover.h"
#include "bench.h"

enum {
  NAP_NS = 20000,
  SETTLE_NS = 20000, /* from the flag of a sleeper to its sleep */
  LIMIT_S = 10
};

/* What a round begins with: the child looks for calls, or sleeps; and whether the head, too, sleeps
 * at once when it waits, as where it has no core to spin on. */
enum { SPINNING, ASLEEP, BOTH_ASLEEP };

static const char late[] = "the other side of the hand-over did not come within 10 s";

static int await_sleep(msi_handover *shared) {
  int64_t end = msi_deadline(LIMIT_S);
  const struct timespec nap = {0, NAP_NS};
  while (!atomic_load_explicit(&shared->child_asleep, memory_order_relaxed)) {
    if (msi_now() > end) return 0;
    nanosleep(&nap, NULL);
  }
  for (int64_t settled = msi_now() + SETTLE_NS;
       msi_now() < settled;); /* the head's core is awake */
  return 1;
}

static const char *ask(msi_handover_side *head, int how, int64_t warm, int64_t rounds,
                       int64_t *samples) {
  for (int64_t i = -warm; i < rounds; i++) {
    if (how != SPINNING && !await_sleep(head->shared)) return late;
    int64_t begin = bench_now();
    msi_handover_post(head);
    if (msi_handover_wait(head, msi_deadline(LIMIT_S), -1) != MSI_HANDOVER_ENDED) return late;
    if (i >= 0) samples[i] = bench_now() - begin;
  }
  return NULL;
}

static const char *answer(msi_handover_side *child, int64_t rounds) {
  for (int64_t i = 0; i < rounds; i++) {
    if (!msi_handover_next(child, msi_deadline(LIMIT_S))) return late;
    msi_handover_end(child, 0, 0);
  }
  return NULL;
}

static const char *run(MPI_Comm comm, int how, int64_t bytes, int64_t warm, int64_t rounds,
                       int64_t *samples) {
  MPI_Win win;
  MPI_Aint size;
  int rank, unit;
  char *memory;
  if (bytes != sizeof(uint64_t)) return "the hand-over has no payload: it is measured at 8 bytes";
  MPI_Comm_rank(comm, &rank);
  MPI_Win_allocate_shared(rank ? 0 : sizeof(msi_handover) + MSI_HANDOVER_LINE, 1, MPI_INFO_NULL,
                          comm, &memory, &win);
  MPI_Win_shared_query(win, 0, &size, &unit, &memory);
  /* Mappings begin at pages, so both ranks align to the same bytes. */
  uintptr_t line = MSI_HANDOVER_LINE;
  msi_handover *shared = (msi_handover *)(((uintptr_t)memory + line - 1) / line * line);
  if (rank == 0) memset(shared, 0, sizeof *shared);
  MPI_Barrier(comm);
  msi_handover_side side;
  msi_handover_open(&side, shared);
  if (how == BOTH_ASLEEP) side.backoff = (msi_backoff){0};
  const char *failed = rank ? answer(&side, warm + rounds) : ask(&side, how, warm, rounds, samples);
  MPI_Win_free(&win);
  return failed;
}

const char *bench_handover_spinning(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                    int64_t *samples) {
  return run(comm, SPINNING, bytes, warm, rounds, samples);
}

const char *bench_handover_asleep(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                  int64_t *samples) {
  return run(comm, ASLEEP, bytes, warm, rounds, samples);
}

const char *bench_handover_both_asleep(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                       int64_t *samples) {
  return run(comm, BOTH_ASLEEP, bytes, warm, rounds, samples);
}
