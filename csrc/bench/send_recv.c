#include <stdlib.h>
#include <string.h>

#include "bench.h"

static void ask(MPI_Comm comm, int bytes, const void *payload, void *back, int64_t warm,
                int64_t rounds, int64_t *samples) {
  for (int64_t i = -warm; i < rounds; i++) {
    int64_t begin = bench_now();
    MPI_Send(payload, bytes, MPI_BYTE, 1, 0, comm);
    MPI_Recv(back, bytes, MPI_BYTE, 1, 0, comm, MPI_STATUS_IGNORE);
    if (i >= 0) samples[i] = bench_now() - begin;
  }
}

static void answer(MPI_Comm comm, int bytes, void *payload, int64_t rounds) {
  for (int64_t i = 0; i < rounds; i++) {
    MPI_Recv(payload, bytes, MPI_BYTE, 0, 0, comm, MPI_STATUS_IGNORE);
    MPI_Send(payload, bytes, MPI_BYTE, 0, 0, comm);
  }
}

const char *bench_send_recv(MPI_Comm comm, int64_t bytes, int64_t warm, int64_t rounds,
                            int64_t *samples) {
  int rank;
  const char *failed = NULL;
  void *payload = bench_memory(bytes, 1), *back = bench_memory(bytes, 2);
  MPI_Comm_rank(comm, &rank);
  if (!payload || !back) {
    failed = "no memory for Send and Recv";
  } else if (rank == 0) {
    ask(comm, (int)bytes, payload, back, warm, rounds, samples);
    if (memcmp(payload, back, (size_t)bytes)) failed = "Send and Recv brought back other bytes";
  } else {
    answer(comm, (int)bytes, back, warm + rounds);
  }
  free(payload);
  free(back);
  return failed;
}
