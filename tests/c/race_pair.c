/* Two processes of a pair, as two threads, for the thread sanitizer: pieces of all sizes, in both
 * directions, in rounds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "mpi/pair.h"
#include "mpiserve.h"

enum { ROUNDS = 400 };

static int file;

static size_t size_of(int round, int rank) {
  return (size_t)(round * 7 + rank * 31) * 97 % MSI_PAIR_PIECE;
}

static int value_of(int round, int rank) { return (round * 3 + rank * 101) & 0x7f; }

static int is_right(const uint8_t *data, int round, int rank) {
  for (size_t i = 0; i < size_of(round, rank); i++)
    if (data[i] != value_of(round, rank)) return 0;
  return 1;
}

static void *live(void *role) {
  static _Thread_local uint8_t mine[MSI_PAIR_PIECE], theirs[MSI_PAIR_PIECE];
  msi_pair *pair;
  int peer = (int)syscall(SYS_pidfd_open, getpid(), 0);
  CHECK(msi_pair_open(&pair, file, peer, *(int *)role) == MPISERVE_OK);
  for (int round = 0; round < ROUNDS && !check_failures; round++) {
    memset(mine, value_of(round, pair->rank), sizeof mine);
    msi_pair_post(pair, mine, size_of(round, pair->rank));
    while (!msi_pair_has_come(pair)) sched_yield();
    msi_pair_read(pair, theirs, size_of(round, !pair->rank));
    CHECK(is_right(theirs, round, !pair->rank));
  }
  CHECK(!msi_pair_is_alone(pair));
  msi_pair_close(pair);
  close(peer);
  return NULL;
}

static void test_wrong_files(void) {
  msi_pair *pair;
  int small = memfd_create("small", MFD_CLOEXEC);
  CHECK(msi_pair_open(&pair, small, -1, 0) == MPISERVE_EARG && !pair);
  CHECK(msi_pair_open(&pair, file, -1, MPISERVE_GATEWAY) == MPISERVE_EARG && !pair);
  CHECK(msi_pair_open(&pair, file, -1, 0) == MPISERVE_EARG && !pair); /* that role was there */
  msi_pair_close(pair);
  close(small);
}

int main(void) {
  pthread_t threads[2];
  int roles[2] = {MPISERVE_SIMULATION, MPISERVE_INFERENCE};
  file = memfd_create("pair", MFD_CLOEXEC);
  CHECK(!ftruncate(file, MPISERVE_PAIR_BYTES));
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, live, &roles[i]);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  test_wrong_files();
  return check_result();
}
