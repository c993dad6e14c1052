/* A parent that forwards batches to its child, as two threads, for the thread sanitizer: what the
 * engine of the child answers, what either side leaves to its caller, and how often the caller in
 * the child is asked. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/forward.h"
#include "check.h"
#include "engine/child.h"

enum { RUN = 1, CALL = 2, COLUMNS = 3, MOST = 8, BATCHES = 3000, CHUNK = 5 };
enum { X, Y, ROOM = 2 * MOST * COLUMNS };

static msi_handover shared;
static double memory[ROOM]; /* of inputs, then of outputs */
static double elsewhere[ROOM];
static int asked; /* how often the child's caller got a call */

static int twice(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
                 char *text, size_t bytes) {
  const double *x = inputs[0];
  double *y = outputs[0];
  CHECK(!state && rows <= CHUNK);
  if (x[0] < 0) return snprintf(text, bytes, "%g is negative", x[0]);
  for (int64_t i = 0; i < rows * COLUMNS; i++) y[i] = 2 * x[i];
  return 0;
}

static const msi_child_tensors TENSORS = {
    1, 1, {COLUMNS * sizeof(double), COLUMNS * sizeof(double)}};

/* The caller in the child fails batches, and ends with the first message. */
static void *live(void *unused) {
  const mpiserve_engine engine = {.run = twice, .chunk_rows = CHUNK};
  msi_handover_side side;
  msi_child child = {.side = &side, .engine = &engine, .tensors = TENSORS, .operation = RUN};
  msi_handover_open(&side, &shared);
  child.memories[0] = (msi_child_memory){(char *)memory, (char *)memory, sizeof memory};
  child.n_memories = 1;
  for (uint32_t operation = RUN; operation == RUN;) {
    while (!msi_child_next(&child, msi_deadline(0.1)));
    asked++;
    operation = shared.operation;
    msi_handover_end(&side, 7, 11);
  }
  return unused;
}

static int hand_over(msi_forward *forward, const double *x, double *y, int64_t rows) {
  const void *inputs[] = {x};
  void *outputs[] = {y};
  char text[MPISERVE_TEXT_SIZE] = "";
  return msi_forward_run(forward, rows, inputs, outputs, text, sizeof text);
}

static void test_batches(msi_forward *forward) {
  double *x = memory, *y = memory + MOST * COLUMNS;
  for (int batch = 0; batch < BATCHES && !check_failures; batch++) {
    int64_t rows = 1 + batch % MOST;
    for (int i = 0; i < rows * COLUMNS; i++) x[i] = batch + i;
    CHECK(!hand_over(forward, x, y, rows) && !forward->is_open);
    for (int i = 0; i < rows * COLUMNS; i++) CHECK(y[i] == 2.0 * (batch + i));
  }
}

static void test_what_is_left(msi_forward *forward) {
  double *x = memory, *y = memory + MOST * COLUMNS;
  CHECK(hand_over(forward, elsewhere, y, 1) && !forward->is_open);
  CHECK(hand_over(forward, x, elsewhere, 1) && !forward->is_open);
  CHECK(hand_over(forward, x, y, MOST + 1) && forward->is_open); /* its end is outside */
  CHECK(shared.code == 7 && shared.answer_size == 11);
  forward->is_open = 0;
  x[0] = -1;
  CHECK(hand_over(forward, x, y, 1) && forward->is_open && forward->posted_ns > 0);
  CHECK(forward->found == MSI_HANDOVER_ENDED && shared.code == 7 && shared.answer_size == 11);
  CHECK(hand_over(forward, x, y, 1)); /* that one has not been asked for yet */
  forward->is_open = 0;
  forward->operation = CALL;
  CHECK(hand_over(forward, x, y, 1) && forward->is_open);
  if (forward->found == MSI_HANDOVER_LATE) /* its end is still to come, for the caller */
    CHECK(msi_handover_wait(forward->parent, msi_deadline(10), -1) == MSI_HANDOVER_ENDED);
}

int main(void) {
  msi_handover_side side;
  msi_forward forward = {.parent = &side, .operation = RUN, .inputs = 1, .outputs = 1, .pidfd = -1};
  pthread_t thread;
  msi_handover_open(&side, &shared);
  forward.begin = memory;
  forward.bytes = sizeof memory;
  pthread_create(&thread, NULL, live, NULL);
  test_batches(&forward);
  if (check_failures) _exit(1);
  test_what_is_left(&forward);
  if (check_failures) _exit(1); /* the child waits for a call that does not come */
  pthread_join(thread, NULL);
  CHECK(asked == 3);
  return check_result();
}
