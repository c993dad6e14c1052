#define _GNU_SOURCE
#include "base/metrics.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"

static msi_shown shown;
static const msi_metrics FIRST = {
    .library = "1.2.3", .run = 7, .rank = 3, .size = 5, .launched_ns = 11};

/* As another process does; MAP_FAILED where it may not. */
static const msi_metrics *look(int open_how, int protection) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), shown.segment.fd);
  int fd = open(path, open_how | O_CLOEXEC);
  CHECK(fd >= 0);
  const msi_metrics *seen = mmap(NULL, sizeof *seen, protection, MAP_SHARED, fd, 0);
  close(fd);
  return seen;
}

static void test_others_see_what_this_rank_counts(void) {
  msi_metrics_open(&shown, &FIRST);
  const msi_metrics *seen = look(O_RDONLY, PROT_READ);
  CHECK(seen != MAP_FAILED && seen != shown.metrics);
  CHECK(!memcmp(seen->magic, "msi-rank", 8) && !strcmp(seen->library, "1.2.3"));
  CHECK(seen->run == 7 && seen->rank == 3 && seen->size == 5 && seen->launched_ns == 11);
  CHECK(seen->pid == getpid() && seen->opened_ns > 0 && seen->part_fd < 0 && seen->services_fd < 0);
  shown.metrics->counters.requests = 13;
  msi_metrics_wait(shown.metrics, &(msi_wait){.start_ns = 17}, 19, 2);
  CHECK(seen->counters.requests == 13);
  CHECK(seen->waits_since_ns == 17 && seen->waits_seen_ns == 19 && seen->waits_for == 2);
  msi_metrics_close(&shown);
  CHECK(seen->closed_ns >= seen->opened_ns && seen->counters.requests == 13);
  munmap((void *)seen, sizeof *seen);
}

static int kernel_can_forbid(void) {
  int fd = memfd_create("some", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  int failed = fcntl(fd, F_ADD_SEALS, 0x0010 /* F_SEAL_FUTURE_WRITE */);
  close(fd);
  return !failed;
}

static void test_others_cannot_write(void) {
  msi_metrics_open(&shown, &FIRST);
  if (kernel_can_forbid()) {
    CHECK(look(O_RDWR, PROT_READ | PROT_WRITE) == MAP_FAILED);
    CHECK(pwrite(shown.segment.fd, "x", 1, 0) < 0);
  }
  shown.metrics->counters.rows = 1; /* and this process still can */
  msi_metrics_close(&shown);
}

static void test_a_rank_that_cannot_show_anything_counts_all_the_same(void) {
  struct rlimit before, none;
  getrlimit(RLIMIT_NOFILE, &before);
  none = before;
  none.rlim_cur = 0;
  setrlimit(RLIMIT_NOFILE, &none);
  msi_metrics_open(&shown, &FIRST);
  setrlimit(RLIMIT_NOFILE, &before);
  CHECK(shown.metrics == &shown.hidden && shown.metrics->rank == 3);
  shown.metrics->counters.requests++;
  msi_metrics_close(&shown);
  CHECK(shown.hidden.counters.requests == 1);
}

int main(void) {
  test_others_see_what_this_rank_counts();
  test_others_cannot_write();
  test_a_rank_that_cannot_show_anything_counts_all_the_same();
  return check_result();
}
