#include "batch.h"

#include "check.h"

static const msi_policy policy = {.max_rows = 10, .max_delay_ns = 500};

static msi_entry entry(uint64_t sequence, uint32_t rows, int64_t taken_ns) {
  return (msi_entry){.sequence = sequence, .rows = rows, .lease = -1, .taken_ns = taken_ns};
}

static void test_first_in_is_first_out(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  for (uint32_t i = 1; i <= 3; i++) CHECK(!msi_queue_push(&queue, entry(i, 10 * i, 0)));
  CHECK(queue.n == 3 && queue.rows == 60 && msi_queue_at(&queue, 2)->sequence == 3);
  for (uint32_t i = 1; i <= 3; i++) CHECK(msi_queue_pop(&queue).sequence == i);
  CHECK(queue.n == 0 && queue.rows == 0);
  msi_queue_close(&queue);
}

/* Three pushes for two pops: the front moves on while the queue grows, so that
 * it wraps, and is wrapped when it has to grow. */
static void test_order_survives_wrap_and_growth(void) {
  msi_queue queue;
  uint64_t pushed = 0, popped = 0;
  CHECK(!msi_queue_open(&queue));
  uint32_t capacity = queue.capacity;
  while (queue.n < 5 * capacity && !check_failures) {
    for (int i = 0; i < 3; i++, pushed++) CHECK(!msi_queue_push(&queue, entry(pushed, 2, 0)));
    for (int i = 0; i < 2; i++) CHECK(msi_queue_pop(&queue).sequence == popped++);
    CHECK(queue.n == pushed - popped && queue.rows == 2 * (int64_t)queue.n);
  }
  CHECK(queue.capacity == 8 * capacity);
  while (queue.n) CHECK(msi_queue_pop(&queue).sequence == popped++);
  CHECK(popped == pushed && queue.rows == 0);
  msi_queue_close(&queue);
}

static void test_a_full_queue_that_wraps_is_copied_in_order(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  uint32_t capacity = queue.capacity;
  for (uint32_t i = 0; i < capacity; i++) CHECK(!msi_queue_push(&queue, entry(i, 1, 0)));
  for (uint32_t i = 0; i < capacity / 2; i++) msi_queue_pop(&queue);
  for (uint32_t i = 0; i <= capacity / 2; i++)
    CHECK(!msi_queue_push(&queue, entry(capacity + i, 1, 0)));
  CHECK(queue.capacity == 2 * capacity && queue.first == 0 && queue.n == capacity + 1);
  for (uint32_t i = 0; i < queue.n; i++)
    CHECK(msi_queue_at(&queue, i)->sequence == capacity / 2 + i);
  msi_queue_close(&queue);
}

static void test_an_empty_queue_stays_open(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  CHECK(msi_batch_decide(&policy, &queue, 0, 0, 1000000) == MSI_OPEN);
  msi_queue_close(&queue);
}

static void test_rows_close_a_batch(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  msi_queue_push(&queue, entry(1, 9, 0));
  CHECK(msi_batch_decide(&policy, &queue, 1, 3, 0) == MSI_OPEN);
  msi_queue_push(&queue, entry(2, 1, 0));
  CHECK(msi_batch_decide(&policy, &queue, 2, 3, 0) == MSI_CLOSED_ROWS);
  msi_queue_close(&queue);
}

static void test_the_census_closes_a_batch(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  msi_queue_push(&queue, entry(1, 1, 0));
  CHECK(msi_batch_decide(&policy, &queue, 1, 2, 0) == MSI_OPEN);
  msi_queue_push(&queue, entry(2, 1, 0));
  CHECK(msi_batch_decide(&policy, &queue, 1, 2, 0) == MSI_OPEN); /* one client asked twice */
  CHECK(msi_batch_decide(&policy, &queue, 2, 2, 0) == MSI_CLOSED_CENSUS);
  CHECK(msi_batch_decide(&policy, &queue, 2, 1, 0) == MSI_CLOSED_CENSUS); /* one has left */
  msi_queue_close(&queue);
}

static void test_delay_counts_from_the_oldest_request(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  msi_queue_push(&queue, entry(1, 1, 100));
  msi_queue_push(&queue, entry(2, 1, 550));
  CHECK(msi_batch_decide(&policy, &queue, 2, 3, 599) == MSI_OPEN);
  CHECK(msi_batch_decide(&policy, &queue, 2, 3, 600) == MSI_CLOSED_DELAY);
  msi_queue_pop(&queue);
  CHECK(msi_batch_decide(&policy, &queue, 1, 3, 600) == MSI_OPEN);
  CHECK(msi_batch_decide(&policy, &queue, 1, 3, 1050) == MSI_CLOSED_DELAY);
  msi_queue_close(&queue);
}

static void test_no_delay_closes_at_once(void) {
  const msi_policy at_once = {.max_rows = 10, .max_delay_ns = 0};
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  msi_queue_push(&queue, entry(1, 1, 100));
  CHECK(msi_batch_decide(&at_once, &queue, 1, 3, 100) == MSI_CLOSED_DELAY);
  msi_queue_close(&queue);
}

static void test_fit_takes_whole_requests_in_order(void) {
  static const uint32_t sizes[] = {4, 5, 2, 1};
  msi_queue queue;
  int64_t rows = -1;
  CHECK(!msi_queue_open(&queue));
  CHECK(msi_batch_fit(&policy, &queue, &rows) == 0 && rows == 0);
  for (uint32_t i = 0; i < 4; i++) msi_queue_push(&queue, entry(i, sizes[i], 0));
  /* The third does not fit; the fourth would, but must not overtake it. */
  CHECK(msi_batch_fit(&policy, &queue, &rows) == 2 && rows == 9);
  msi_queue_pop(&queue);
  CHECK(msi_batch_fit(&policy, &queue, &rows) == 3 && rows == 8);
  msi_queue_close(&queue);
}

static void test_the_largest_request_fits_alone(void) {
  msi_queue queue;
  int64_t rows;
  CHECK(!msi_queue_open(&queue));
  msi_queue_push(&queue, entry(1, 10, 0));
  msi_queue_push(&queue, entry(2, 1, 0));
  CHECK(msi_batch_fit(&policy, &queue, &rows) == 1 && rows == 10);
  msi_queue_close(&queue);
}

int main(void) {
  test_first_in_is_first_out();
  test_order_survives_wrap_and_growth();
  test_a_full_queue_that_wraps_is_copied_in_order();
  test_an_empty_queue_stays_open();
  test_rows_close_a_batch();
  test_the_census_closes_a_batch();
  test_delay_counts_from_the_oldest_request();
  test_no_delay_closes_at_once();
  test_fit_takes_whole_requests_in_order();
  test_the_largest_request_fits_alone();
  return check_result();
}
