#define _GNU_SOURCE
#include <stdlib.h>
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
