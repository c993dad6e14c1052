/* Calls from a parent to its child: posted, taken, reported, ended; and the ends of a child. With
 * an argument, so many calls are measured, each after a pause of the other side or without one. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/forward.h"
#include "check.h"

enum { ADD, COUNT, EXIT, KILL, LEAVE, HANG, NAP, FORWARDED, CALLS = 2000 };

typedef struct family {
  msi_handover_side side;
  pid_t pid;
  int pidfd;
} family;

static void nap_us(long us) {
  struct timespec t = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&t, NULL);
}

/* Two tensors, 10 and 20 bytes into the memory 1, and what goes with each batch. */
static int is_forwarded(const msi_handover *shared) {
  const msi_place *p = shared->place;
  return shared->places == 3 && p[0].memory == 1 && p[0].offset == 10 && p[1].memory == 1 &&
         p[1].offset == 20 && p[2].memory == 5 && p[2].offset == 50 && !shared->size;
}

static void run(msi_handover_side *child) {
  msi_handover *shared = child->shared;
  if (shared->operation == FORWARDED) {
    msi_handover_end(child, !is_forwarded(shared), shared->rows > 100);
    return;
  }
  if (shared->operation == EXIT) _exit(7);
  if (shared->operation == KILL) kill(getpid(), SIGKILL);
  if (shared->operation == HANG) pause();
  if (shared->operation == NAP) nap_us(200);
  for (int64_t row = 1; shared->operation == COUNT && row <= shared->rows; row++)
    msi_handover_rows(child, row);
  uint64_t sum = shared->size;
  for (uint32_t i = 0; i < shared->places; i++) sum += shared->place[i].offset;
  msi_handover_end(child, (int)shared->rows, sum);
  if (shared->operation == LEAVE) _exit(0);
}

static void live(msi_handover *shared) {
  msi_handover_side child;
  msi_handover_open(&child, shared);
  while (getppid() != 1)
    if (msi_handover_next(&child, msi_deadline(0.05))) run(&child);
  _exit(0);
}

static family make(void) {
  family made = {.pidfd = -1};
  msi_handover *shared =
      mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED || (made.pid = fork()) < 0) exit(77);
  if (!made.pid) live(shared);
  msi_handover_open(&made.side, shared);
#ifdef SYS_pidfd_open
  made.pidfd = (int)syscall(SYS_pidfd_open, made.pid, 0);
#endif
  return made;
}

static void end(family *made) {
  kill(made->pid, SIGKILL);
  waitpid(made->pid, NULL, 0);
  if (made->pidfd >= 0) close(made->pidfd);
  munmap(made->side.shared, sizeof *made->side.shared);
}

static void post(family *made, uint32_t operation, int64_t rows) {
  msi_handover *shared = made->side.shared;
  shared->operation = operation;
  shared->rows = rows;
  shared->size = 1;
  shared->places = 2;
  shared->place[0].offset = shared->place[1].offset = (uint64_t)rows;
  msi_handover_post(&made->side);
}

static int wait_for(family *made, double seconds) {
  return msi_handover_wait(&made->side, msi_deadline(seconds), made->pidfd);
}

static void test_each_call_ends_with_its_own_answer(void) {
  family made = make();
  for (int i = 0; i < CALLS; i++) {
    if (i % 100 == 0) nap_us(1000); /* the child sleeps by then */
    post(&made, i % 50 ? ADD : NAP, i);
    CHECK(wait_for(&made, 60) == MSI_HANDOVER_ENDED);
    CHECK(made.side.shared->code == i && made.side.shared->answer_size == 1 + 2 * (uint64_t)i);
  }
  end(&made);
}

static void test_reports_come_before_the_end_and_only_rise(void) {
  family made = make();
  for (int i = 0; i < 1000; i++) {
    int64_t done = 0, before = 0;
    post(&made, COUNT, 50);
    while (wait_for(&made, 60) == MSI_HANDOVER_ROWS) {
      done = atomic_load(&made.side.shared->rows_done);
      CHECK(before <= done && done <= 50); /* it may have gone on since the report */
      before = done;
    }
    CHECK(made.side.shared->code == 50);
    post(&made, ADD, 1); /* no report of the call before is one of this call */
    CHECK(wait_for(&made, 60) == MSI_HANDOVER_ENDED && made.side.shared->code == 1);
  }
  end(&made);
}

static void test_a_child_that_dies_is_noticed(void) {
  static const uint32_t ends[] = {EXIT, KILL};
  for (int i = 0; i < 2; i++) {
    family made = make();
    if (made.pidfd < 0) return end(&made);
    CHECK(!msi_handover_dead(made.pidfd));
    post(&made, ends[i], 1);
    CHECK(wait_for(&made, 60) == MSI_HANDOVER_DEAD);
    CHECK(msi_handover_dead(made.pidfd) && msi_handover_taken(&made.side));
    post(&made, ADD, 1);
    CHECK(wait_for(&made, 60) == MSI_HANDOVER_DEAD && !msi_handover_taken(&made.side));
    end(&made);
  }
}

static void test_an_answer_before_the_death_counts(void) {
  family made = make();
  post(&made, LEAVE, 5);
  nap_us(20000);
  CHECK(wait_for(&made, 60) == MSI_HANDOVER_ENDED && made.side.shared->code == 5);
  end(&made);
}

static void test_a_child_that_hangs_is_late(void) {
  family made = make();
  post(&made, HANG, 1);
  CHECK(wait_for(&made, 0.01) == MSI_HANDOVER_LATE);
  end(&made);
}

static char memory[100], text[64];

static msi_forward forward_of(family *made, uint32_t operation) {
  return (msi_forward){.parent = &made->side,
                       .operation = operation,
                       .inputs = 1,
                       .outputs = 1,
                       .begin = memory,
                       .bytes = sizeof memory,
                       .memory = 1,
                       .last = {5, 50},
                       .pidfd = made->pidfd};
}

static int run_forward(msi_forward *forward, int64_t rows, const void *input) {
  void *output = memory + 20;
  return msi_forward_run(forward, rows, &input, &output, text, sizeof text);
}

static void test_batches_are_forwarded_where_the_child_can_see_them(void) {
  family made = make();
  msi_forward forward = forward_of(&made, FORWARDED);
  for (int i = 1; i <= 100; i++) CHECK(!run_forward(&forward, i, memory + 10));
  CHECK(run_forward(&forward, 1, text) && !forward.is_open); /* elsewhere: nothing was posted */
  CHECK_TEXT(text, "not in memory that");
  CHECK(!run_forward(&forward, 1, memory + 10));
  CHECK(run_forward(&forward, 101, memory + 10)); /* it ends with a message */
  CHECK(forward.is_open && forward.found == MSI_HANDOVER_ENDED && forward.posted_ns > 0);
  CHECK(!made.side.shared->code && made.side.shared->answer_size == 1);
  end(&made);
}

static void test_what_does_not_end_well_is_left_open(void) {
  static const struct {
    uint32_t operation;
    int found;
  } ends[] = {{ADD, MSI_HANDOVER_ENDED},
              {COUNT, MSI_HANDOVER_ROWS},
              {HANG, MSI_HANDOVER_LATE},
              {KILL, MSI_HANDOVER_DEAD}};
  for (int i = 0; i < 4; i++) {
    family made = make();
    msi_forward forward = forward_of(&made, ends[i].operation);
    if (made.pidfd >= 0 || ends[i].operation != KILL) {
      CHECK(run_forward(&forward, 3, memory + 10));
      int is_found = forward.found == ends[i].found;
      if (ends[i].operation == COUNT) is_found |= forward.found == MSI_HANDOVER_ENDED;
      CHECK(forward.is_open && is_found);
    }
    end(&made);
  }
}

/* The fastest of each: other processes only add. */
static void measure(int calls) {
  family made = make();
  for (int pause = 0; pause < 2; pause++) {
    int64_t best = INT64_MAX, sum = 0;
    for (int i = 0; i < calls; i++) {
      if (pause) nap_us(500);
      int64_t begin = msi_now();
      post(&made, ADD, i);
      CHECK(wait_for(&made, 60) == MSI_HANDOVER_ENDED);
      int64_t ns = msi_now() - begin;
      sum += ns;
      if (ns < best) best = ns;
    }
    printf("%s: best %.2f us, mean %.2f us\n", pause ? "asleep" : "spinning", (double)best / 1e3,
           (double)sum / 1e3 / calls);
  }
  end(&made);
}

int main(int argc, char **argv) {
  if (argc > 1) {
    measure(atoi(argv[1]));
    return check_result();
  }
  test_each_call_ends_with_its_own_answer();
  test_reports_come_before_the_end_and_only_rise();
  test_a_child_that_dies_is_noticed();
  test_an_answer_before_the_death_counts();
  test_a_child_that_hangs_is_late();
  test_batches_are_forwarded_where_the_child_can_see_them();
  test_what_does_not_end_well_is_left_open();
  return check_result();
}
