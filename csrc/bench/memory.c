#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "bench.h"

enum { LINE = 64 };

int64_t bench_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void *bench_memory(int64_t bytes, int seed) {
  size_t size = ((size_t)bytes + LINE - 1) / LINE * LINE;
  uint8_t *memory = aligned_alloc(LINE, size);
  for (size_t i = 0; memory && i < size; i++) memory[i] = (uint8_t)(seed + (int)(i % 251));
  return memory;
}

int bench_window_open(MPI_Comm comm, int64_t bytes, uint8_t **mine, MPI_Win *win) {
  int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE;
  void *memory = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  *mine = memory == MAP_FAILED ? NULL : memory;
  MPI_Win_create(*mine, *mine ? (MPI_Aint)bytes : 0, 1, MPI_INFO_NULL, comm, win);
  return *mine != NULL;
}

void bench_window_close(int64_t bytes, uint8_t *mine, MPI_Win *win) {
  MPI_Win_free(win);
  if (mine) munmap(mine, (size_t)bytes);
}
