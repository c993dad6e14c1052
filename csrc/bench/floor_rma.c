#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { FLAG_BYTES = 64, LOOKS_PER_PROBE = 64 };

/* A rank's window memory: its flag on a line of its own, then what it is sent. */
typedef struct floor_end {
  MPI_Comm comm;
  MPI_Win win;
  int rank, peer;
  int64_t bytes;
  uint8_t *mine;
} floor_end;

static void post(floor_end *end, const void *payload, uint64_t round) {
  MPI_Put(payload, (int)end->bytes, MPI_BYTE, end->peer, FLAG_BYTES, (int)end->bytes, MPI_BYTE,
          end->win);
  MPI_Win_flush(end->peer, end->win);
  MPI_Put(&round, sizeof round, MPI_BYTE, end->peer, 0, sizeof round, MPI_BYTE, end->win);
  MPI_Win_flush(end->peer, end->win);
}

static void await(floor_end *end, uint64_t round) {
  const volatile uint64_t *flag = (const volatile uint64_t *)end->mine;
  for (unsigned looks = 1; *flag != round; looks++) {
    int ignored;
    MPI_Win_sync(end->win);
    /* Some MPI libraries move nothing for a rank that never calls them. */
    if (looks % LOOKS_PER_PROBE == 0)
      MPI_Iprobe(end->peer, MPI_ANY_TAG, end->comm, &ignored, MPI_STATUS_IGNORE);
  }
  MPI_Win_sync(end->win);
}

static void ask(floor_end *end, const void *payload, int64_t warm, int64_t rounds,
                int64_t *samples) {
  for (int64_t i = -warm; i < rounds; i++) {
    int64_t begin = bench_now();
    post(end, payload, (uint64_t)(i + warm + 1));
    await(end, (uint64_t)(i + warm + 1));
    if (i >= 0) samples[i] = bench_now() - begin;
  }
}

static void answer(floor_end *end, int64_t rounds) {
  for (uint64_t i = 1; i <= (uint64_t)rounds; i++) {
    await(end, i);
    post(end, end->mine + FLAG_BYTES, i);
  }
}

static const char *run(floor_end *end, const void *payload, int64_t warm, int64_t rounds,
                       int64_t *samples) {
  memset(end->mine, 0, FLAG_BYTES + (size_t)end->bytes);
  MPI_Win_lock_all(MPI_MODE_NOCHECK, end->win);
  MPI_Win_sync(end->win);
  MPI_Barrier(end->comm); /* nobody puts before the flags are cleared */
  if (end->rank == 0)
    ask(end, payload, warm, rounds, samples);
  else
    answer(end, warm + rounds);
  MPI_Barrier(end->comm);
  MPI_Win_unlock_all(end->win);
  if (end->rank == 0 && memcmp(payload, end->mine + FLAG_BYTES, (size_t)end->bytes))
    return "the RMA floor brought back other bytes than it sent";
  return NULL;
}

const char *bench_floor_rma(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                            int64_t *samples) {
  floor_end end = {.comm = comm, .bytes = bytes};
  MPI_Comm_rank(comm, &end.rank);
  end.peer = !end.rank;
  void *payload = bench_memory(bytes, 1);
  if (!payload) return "no memory for the RMA floor";
  MPI_Win_allocate((MPI_Aint)(FLAG_BYTES + bytes), 1, MPI_INFO_NULL, comm, &end.mine, &end.win);
  const char *failed = run(&end, payload, warm, rounds, samples);
  MPI_Win_free(&end.win);
  free(payload);
  return failed;
}
