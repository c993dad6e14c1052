#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { DONE_TAG = 7 };

static void ask(MPI_Comm comm, MPI_Win win, const void *payload, void *back, int bytes,
                int64_t warm, int64_t rounds, int64_t *samples) {
  for (int64_t i = -warm; i < rounds; i++) {
    int64_t begin = bench_now();
    MPI_Put(payload, bytes, MPI_BYTE, 1, 0, bytes, MPI_BYTE, win);
    MPI_Win_flush(1, win);
    MPI_Get(back, bytes, MPI_BYTE, 1, 0, bytes, MPI_BYTE, win);
    MPI_Win_flush(1, win);
    if (i >= 0) samples[i] = bench_now() - begin;
  }
  MPI_Send(NULL, 0, MPI_BYTE, 1, DONE_TAG, comm);
}

/* The target only makes progress, as a head does. */
static void answer(MPI_Comm comm) {
  int done = 0;
  while (!done) MPI_Iprobe(0, DONE_TAG, comm, &done, MPI_STATUS_IGNORE);
  MPI_Recv(NULL, 0, MPI_BYTE, 0, DONE_TAG, comm, MPI_STATUS_IGNORE);
}

const char *bench_floor_put_get(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                                int64_t *samples) {
  int rank;
  void *mine;
  MPI_Win win;
  MPI_Comm_rank(comm, &rank);
  void *payload = bench_memory(bytes, 1), *back = bench_memory(bytes, 2);
  if (!payload || !back) return "no memory for the Put and Get floor";
  MPI_Win_allocate((MPI_Aint)bytes, 1, MPI_INFO_NULL, comm, &mine, &win);
  memset(mine, 0, (size_t)bytes);
  MPI_Win_lock_all(MPI_MODE_NOCHECK, win);
  MPI_Barrier(comm);
  if (rank == 0)
    ask(comm, win, payload, back, (int)bytes, warm, rounds, samples);
  else
    answer(comm);
  MPI_Barrier(comm);
  MPI_Win_unlock_all(win);
  MPI_Win_free(&win);
  int differ = rank == 0 && memcmp(payload, back, (size_t)bytes);
  free(payload);
  free(back);
  return differ ? "Get brought back other bytes than Put had sent" : NULL;
}
