#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "bench.h"

enum { LINE = 64, LOOKS_PER_YIELD = 1 << 16 };

/* Each rank writes one word and watches the other. */
typedef struct flags {
  _Alignas(LINE) _Atomic uint64_t asked;
  _Alignas(LINE) _Atomic uint64_t answered;
} flags;

static void await(_Atomic uint64_t *word, uint64_t round) {
  /* Yields for the sake of a machine on which both ranks share a core. */
  for (unsigned looks = 1; atomic_load_explicit(word, memory_order_acquire) != round; looks++)
    if (looks % LOOKS_PER_YIELD == 0) sched_yield();
}

static void ask(flags *both, int64_t warm, int64_t rounds, int64_t *samples) {
  for (int64_t i = -warm; i < rounds; i++) {
    uint64_t round = (uint64_t)(i + warm + 1);
    int64_t begin = bench_now();
    atomic_store_explicit(&both->asked, round, memory_order_release);
    await(&both->answered, round);
    if (i >= 0) samples[i] = bench_now() - begin;
  }
}

static void answer(flags *both, int64_t rounds) {
  for (uint64_t round = 1; round <= (uint64_t)rounds; round++) {
    await(&both->asked, round);
    atomic_store_explicit(&both->answered, round, memory_order_release);
  }
}

const char *bench_floor_flag(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                             int64_t *samples) {
  MPI_Win win;
  MPI_Aint size;
  int rank, unit;
  char *memory;
  if (bytes != sizeof(uint64_t)) return "the flag floor is of 8 bytes";
  MPI_Comm_rank(comm, &rank);
  MPI_Win_allocate_shared(rank ? 0 : sizeof(flags) + LINE, 1, MPI_INFO_NULL, comm, &memory, &win);
  MPI_Win_shared_query(win, 0, &size, &unit, &memory);
  /* Mappings begin at pages, so both ranks align to the same bytes. */
  flags *both = (flags *)(((uintptr_t)memory + LINE - 1) / LINE * LINE);
  if (rank == 0) memset(both, 0, sizeof *both);
  MPI_Barrier(comm);
  if (rank == 0)
    ask(both, warm, rounds, samples);
  else
    answer(both, warm + rounds);
  MPI_Win_free(&win);
  return NULL;
}
