/* A parent and its child as two threads, for the thread sanitizer; and a child that answers, and is
 * dead when the parent looks. */
#include <pthread.h>
#include <unistd.h>

#include "base/handover.h"
#include "check.h"

enum { CALLS = 3000, TRIES = 50, ROWS = 2, EARLY = 7, TEN_S = 10 };

static msi_handover shared;
static int64_t in[ROWS], out[ROWS]; /* the tensors of a call; each side writes one */

static void *live(void *unused) {
  msi_handover_side child;
  msi_handover_open(&child, &shared);
  for (int call = 0; call < CALLS; call++) {
    while (!msi_handover_next(&child, msi_deadline(1)));
    for (int row = 0; row < ROWS; row++) {
      out[row] = 2 * in[row];
      if (row == 0 && call % EARLY == 0) msi_handover_rows(&child, 1);
    }
    msi_handover_end(&child, (int)shared.rows, (uint64_t)shared.operation);
  }
  return unused;
}

static void call_once(msi_handover_side *parent, int call) {
  int found, reports = 0;
  for (int row = 0; row < ROWS; row++) in[row] = call + row;
  shared.rows = call;
  shared.operation = (uint32_t)call;
  msi_handover_post(parent);
  while ((found = msi_handover_wait(parent, msi_deadline(TEN_S), -1)) == MSI_HANDOVER_ROWS) {
    CHECK(shared.rows_done == 1 && out[0] == 2 * (int64_t)call);
    reports++;
  }
  CHECK(found == MSI_HANDOVER_ENDED && reports <= (call % EARLY == 0));
  CHECK(shared.code == call && shared.answer_size == (uint64_t)call);
  for (int row = 0; row < ROWS; row++) CHECK(out[row] == 2 * (int64_t)(call + row));
}

static void test_each_side_sees_what_the_other_wrote(void) {
  msi_handover_side parent;
  pthread_t thread;
  msi_handover_open(&parent, &shared);
  pthread_create(&thread, NULL, live, NULL);
  for (int call = 0; call < CALLS && !check_failures; call++) call_once(&parent, call);
  if (check_failures) _exit(1); /* the child waits for a call that does not come */
  pthread_join(thread, NULL);
}

/* Answers a call of a parent that sleeps. */
static void *answer(void *memory) {
  msi_handover *mine = memory;
  msi_handover_side child;
  msi_handover_open(&child, mine);
  while (!msi_handover_next(&child, msi_deadline(1)));
  while (!atomic_load_explicit(&mine->parent_asleep, memory_order_relaxed));
  msi_handover_end(&child, 0, 0);
  return NULL;
}

/* The answer wakes the parent, which then sees that the child is dead, as the closed end of a pipe
 * says here. Where the answer takes longer than the parent sleeps it is not there: so some tries.
 */
static void test_an_answer_is_seen_after_the_death(void) {
  int ends[2], found = 0;
  if (pipe(ends)) return;
  close(ends[1]);
  for (int i = 0; i < TRIES && found != MSI_HANDOVER_ENDED; i++) {
    msi_handover mine = {0};
    msi_handover_side parent;
    pthread_t thread;
    msi_handover_open(&parent, &mine);
    pthread_create(&thread, NULL, answer, &mine);
    msi_handover_post(&parent);
    while (!msi_handover_taken(&parent));
    found = msi_handover_wait(&parent, msi_deadline(TEN_S), ends[0]);
    while (!atomic_load_explicit(&mine.news, memory_order_acquire))
      atomic_store_explicit(&mine.parent_asleep, 1, memory_order_relaxed);
    pthread_join(thread, NULL);
  }
  CHECK(found == MSI_HANDOVER_ENDED);
  close(ends[0]);
}

int main(void) {
  test_each_side_sees_what_the_other_wrote();
  test_an_answer_is_seen_after_the_death();
  return check_result();
}
