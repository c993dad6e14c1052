#define _GNU_SOURCE
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/wait.h"
#include "bench.h"

enum { LINE = 64, NAP_NS = 20000, SETTLE_NS = 20000, LIMIT_NS = 1000000000 };

/* Each rank counts up one word and sleeps at the other. */
typedef struct words {
  _Alignas(LINE) _Atomic uint32_t asked;
  _Alignas(LINE) _Atomic uint32_t answered;
  _Alignas(LINE) _Atomic uint32_t asleep; /* the round for which the second rank goes to sleep */
} words;

static void sleep_until(_Atomic uint32_t *word, uint32_t round) {
  while (atomic_load_explicit(word, memory_order_acquire) != round)
    msi_futex_wait(word, round - 1, LIMIT_NS);
}

static void await_sleep(words *both, uint32_t round) {
  const struct timespec nap = {0, NAP_NS};
  while (atomic_load_explicit(&both->asleep, memory_order_acquire) != round) nanosleep(&nap, NULL);
  for (int64_t settled = msi_now() + SETTLE_NS; msi_now() < settled;);
}

static void ask(words *both, int sleeps, int64_t warm, int64_t rounds, int64_t *samples) {
  for (int64_t i = -warm; i < rounds; i++) {
    uint32_t round = (uint32_t)(i + warm + 1);
    await_sleep(both, round);
    int64_t begin = bench_now();
    atomic_store_explicit(&both->asked, round, memory_order_release);
    msi_futex_wake(&both->asked);
    if (sleeps)
      sleep_until(&both->answered, round);
    else
      while (atomic_load_explicit(&both->answered, memory_order_acquire) != round);
    if (i >= 0) samples[i] = bench_now() - begin;
  }
}

static void answer(words *both, int wakes, int64_t rounds) {
  for (uint32_t round = 1; round <= (uint32_t)rounds; round++) {
    atomic_store_explicit(&both->asleep, round, memory_order_release);
    sleep_until(&both->asked, round);
    atomic_store_explicit(&both->answered, round, memory_order_release);
    if (wakes) msi_futex_wake(&both->answered);
  }
}

static const char *run(MPI_Comm comm, int both_sleep, int64_t bytes, int64_t warm, int64_t rounds,
                       int64_t *samples) {
  MPI_Win win;
  MPI_Aint size;
  int rank, unit;
  char *memory;
  if (bytes != sizeof(uint64_t)) return "a wake has no payload: it is measured at 8 bytes";
  MPI_Comm_rank(comm, &rank);
  MPI_Win_allocate_shared(rank ? 0 : sizeof(words) + LINE, 1, MPI_INFO_NULL, comm, &memory, &win);
  MPI_Win_shared_query(win, 0, &size, &unit, &memory);
  /* Mappings begin at pages, so both ranks align to the same bytes. */
  words *both = (words *)(((uintptr_t)memory + LINE - 1) / LINE * LINE);
  if (rank == 0) memset(both, 0, sizeof *both);
  MPI_Barrier(comm);
  if (rank == 0)
    ask(both, both_sleep, warm, rounds, samples);
  else
    answer(both, both_sleep, warm + rounds);
  MPI_Win_free(&win);
  return NULL;
}

const char *bench_floor_wake(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                             int64_t *samples) {
  return run(comm, 0, bytes, warm, rounds, samples);
}

const char *bench_floor_wake_both(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                  int64_t *samples) {
  return run(comm, 1, bytes, warm, rounds, samples);
}
