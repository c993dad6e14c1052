#include "head/batch.h"

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

/* ---- which requests make a batch --------------------------------------------------- */

/* Takes the next batch: the sequence numbers of its requests as the digits of a number. */
static int next_batch_by(const msi_policy *by, msi_queue *queue) {
  uint32_t span, n = msi_batch_pick(by, queue, &span), found = 0;
  int digits = 0;
  for (uint32_t i = 0; i < span; i++) {
    const msi_entry *e = msi_queue_at(queue, i);
    if (!e->picked) continue;
    digits = 10 * digits + (int)e->sequence;
    found++;
  }
  CHECK(found == n);
  msi_queue_take_picked(queue, span);
  return digits;
}

static int next_batch(msi_queue *queue) { return next_batch_by(&policy, queue); }

static void push(msi_queue *queue, uint64_t sequence, uint32_t rows, uint32_t lane, int priority) {
  msi_entry e = entry(sequence, rows, 0);
  e.lane = lane;
  e.priority = (int8_t)priority;
  CHECK(!msi_queue_push(queue, e));
}

static void test_a_batch_takes_whole_requests_in_order(void) {
  static const uint32_t sizes[] = {4, 5, 2, 1};
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  CHECK(next_batch(&queue) == 0);
  for (uint32_t i = 0; i < 4; i++) push(&queue, i + 1, sizes[i], i, 0);
  /* The third does not fit; the fourth would, but must not overtake it. */
  CHECK(next_batch(&queue) == 12 && queue.n == 2 && queue.rows == 3);
  CHECK(next_batch(&queue) == 34 && queue.n == 0 && queue.rows == 0);
  msi_queue_close(&queue);
}

static void test_the_largest_request_fits_alone(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 10, 0, 0);
  push(&queue, 2, 1, 1, 0);
  CHECK(next_batch(&queue) == 1 && next_batch(&queue) == 2);
  CHECK(queue.crowded == 1 && queue.together_rows == 11 && !queue.shared);
  push(&queue, 3, 1, 0, 0);
  push(&queue, 4, 1, 1, 0);
  CHECK(next_batch(&queue) == 34 && queue.crowded == 1 && queue.shared);
  msi_queue_close(&queue);
}

static void test_higher_priorities_come_first_and_equal_ones_in_order(void) {
  static const int priorities[] = {0, 5, -3, 5, 0, 7};
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  for (uint32_t i = 0; i < 6; i++) push(&queue, i + 1, 5, i, priorities[i]);
  CHECK(next_batch(&queue) == 26 && queue.n == 4 && queue.rows == 20);
  CHECK(next_batch(&queue) == 14);
  CHECK(next_batch(&queue) == 35); /* all that is left: in the order of arrival */
  CHECK(queue.n == 0 && queue.rows == 0 && !queue.ranked);
  msi_queue_close(&queue);
}

static void test_none_overtakes_an_earlier_one_of_its_lane(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 5, 0, 0);
  push(&queue, 2, 5, 1, -1);
  push(&queue, 3, 5, 1, 1);
  push(&queue, 4, 5, 0, 0);
  CHECK(next_batch(&queue) == 23); /* the later one of lane 1 makes the earlier one urgent */
  CHECK(next_batch(&queue) == 14);
  push(&queue, 1, 5, 3, 0);
  push(&queue, 2, 5, 1, -1);
  push(&queue, 3, 5, 2, 1);
  CHECK(next_batch(&queue) == 13); /* lane 2 is another one */
  msi_queue_close(&queue);
}

static void test_a_large_request_is_not_passed_by_lower_ones(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 6, 0, 2);
  push(&queue, 2, 6, 1, 1);
  push(&queue, 3, 1, 2, 0);
  CHECK(next_batch(&queue) == 1 && next_batch(&queue) == 23);
  msi_queue_close(&queue);
}

static void test_the_lowest_is_served_within_so_many_batches(void) {
  msi_queue queue;
  int batches = 0, served = 0;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 10, 0, -100);
  while (!served && batches < 3 * MSI_FAIR_TURN) {
    push(&queue, 2, 10, 1, 100); /* never less than one that is preferred */
    push(&queue, 3, 10, 2, 100);
    served = next_batch(&queue) == 1;
    batches++;
  }
  CHECK(batches == MSI_FAIR_TURN);
  msi_queue_close(&queue);
}

/* Every request comes out once, each lane's in order, whatever was drawn. */
static void test_nothing_is_lost_doubled_or_reordered_in_a_lane(void) {
  enum { LANES = 7, TOTAL = 4000 };
  msi_queue queue;
  uint64_t last[LANES] = {0}, pushed = 0, taken = 0, seed = 1;
  CHECK(!msi_queue_open(&queue));
  while (taken < TOTAL && !check_failures) {
    for (int i = 0; i < 5 && pushed < TOTAL; i++) {
      seed = seed * 6364136223846793005U + 1442695040888963407U;
      push(&queue, ++pushed, 1 + (seed >> 40) % 9, (seed >> 33) % LANES, (int)(seed >> 50) % 5 - 2);
    }
    uint32_t span, n = msi_batch_pick(&policy, &queue, &span);
    CHECK(n > 0);
    for (uint32_t i = 0; i < span; i++) {
      const msi_entry *e = msi_queue_at(&queue, i);
      if (!e->picked) continue;
      CHECK(e->sequence > last[e->lane]);
      last[e->lane] = e->sequence;
      taken++;
    }
    msi_queue_take_picked(&queue, span);
    CHECK(queue.n == pushed - taken);
  }
  CHECK(queue.n == 0 && queue.rows == 0);
  msi_queue_close(&queue);
}

static void test_what_is_removed_leaves_the_others_in_order(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  for (uint32_t i = 1; i <= 4; i++) push(&queue, i, i, i, 0);
  CHECK(msi_queue_remove(&queue, 2).sequence == 3 && queue.n == 3 && queue.rows == 7);
  CHECK(next_batch(&queue) == 124);
  msi_queue_close(&queue);
}

/* ---- limits and deadlines ------------------------------------------------------------- */

static void test_a_limited_queue_takes_no_more_rows_but_any_request_when_empty(void) {
  const msi_policy limited = {.max_rows = 10, .max_delay_ns = 500, .queue_rows = 6};
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  CHECK(msi_queue_admits(&limited, &queue, 10));
  push(&queue, 1, 4, 0, 0);
  CHECK(msi_queue_admits(&limited, &queue, 2) && !msi_queue_admits(&limited, &queue, 3));
  CHECK(!msi_queue_admits(&limited, &queue, UINT32_MAX));
  CHECK(msi_queue_admits(&policy, &queue, UINT32_MAX)); /* no limit */
  msi_queue_close(&queue);
}

static void test_a_full_queue_closes_a_batch(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 4, 0, 0);
  CHECK(msi_batch_decide(&policy, &queue, 1, 3, 0) == MSI_OPEN);
  queue.full = 1; /* nobody else can come in */
  CHECK(msi_batch_decide(&policy, &queue, 1, 3, 0) == MSI_CLOSED_ROWS);
  msi_queue_close(&queue);
}

static void test_a_request_waits_for_others_half_of_its_time(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  msi_queue_push(&queue, entry(1, 1, 100));
  msi_entry hurried = entry(2, 1, 200);
  hurried.deadline_ns = 300;
  msi_queue_push(&queue, hurried);
  CHECK(msi_batch_decide(&policy, &queue, 2, 3, 249) == MSI_OPEN);
  CHECK(msi_batch_decide(&policy, &queue, 2, 3, 250) == MSI_CLOSED_DELAY);
  msi_queue_remove(&queue, 1);
  CHECK(msi_batch_decide(&policy, &queue, 1, 3, 250) == MSI_OPEN);
  msi_queue_close(&queue);
}

/* ---- rows that belong together ----------------------------------------------------- */

static const msi_policy whole = {.max_rows = 10, .max_delay_ns = 500, .together = 1};

static void test_rows_that_belong_together_wait_for_nobody_and_join_nobody(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  CHECK(msi_batch_decide(&whole, &queue, 0, 3, 0) == MSI_OPEN);
  for (uint32_t i = 1; i <= 3; i++) push(&queue, i, 1, i, 0);
  CHECK(msi_batch_decide(&whole, &queue, 1, 3, 0) == MSI_CLOSED_ROWS);
  for (int i = 1; i <= 3; i++) CHECK(next_batch_by(&whole, &queue) == i);
  CHECK(!queue.n && !queue.rows && msi_batch_decide(&whole, &queue, 3, 3, 0) == MSI_OPEN);
  msi_queue_close(&queue);
}

static void test_whole_requests_have_their_turns_by_priority(void) {
  static const int priorities[] = {0, 5, -3, 5};
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  for (uint32_t i = 0; i < 4; i++) push(&queue, i + 1, 1, i, priorities[i]);
  CHECK(next_batch_by(&whole, &queue) == 2 && next_batch_by(&whole, &queue) == 4);
  CHECK(next_batch_by(&whole, &queue) == 1 && next_batch_by(&whole, &queue) == 3);
  push(&queue, 9, 1, 0, -100);
  int batches = 1;
  for (; batches < 3 * MSI_FAIR_TURN; batches++) {
    push(&queue, 1, 1, 1, 100);
    if (next_batch_by(&whole, &queue) == 9) break;
  }
  CHECK(batches == MSI_FAIR_TURN); /* the lowest too, in the end */
  msi_queue_close(&queue);
}

/* ---- requests of different dimensions ------------------------------------------------ */

/* Here, those of lanes whose numbers are equal but for the last digit. */
static int are_alike(const void *of, const msi_entry *a, const msi_entry *b) {
  CHECK(of == &policy);
  return a->lane / 10 == b->lane / 10;
}

static const msi_policy alike = {
    .alike_rows = 10, .max_delay_ns = 500, .alike = are_alike, .of = &policy};

static void test_a_batch_has_requests_that_are_like_the_oldest(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 2, 11, 0);
  push(&queue, 2, 2, 21, 0);
  push(&queue, 3, 2, 12, 0);
  push(&queue, 4, 7, 13, 0); /* too many with the others */
  push(&queue, 5, 2, 22, 0);
  push(&queue, 6, 1, 14, 0); /* not past that one */
  CHECK(next_batch_by(&alike, &queue) == 13 && next_batch_by(&alike, &queue) == 25);
  CHECK(next_batch_by(&alike, &queue) == 46 && !queue.n && !queue.rows);
  msi_queue_close(&queue);
}

static void test_those_that_are_left_wait_for_nobody(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 1, 11, 0);
  push(&queue, 2, 1, 21, 0);
  CHECK(msi_batch_decide(&alike, &queue, 2, 3, 0) == MSI_OPEN);
  CHECK(next_batch_by(&alike, &queue) == 1);
  CHECK(msi_batch_decide(&alike, &queue, 1, 3, 0) == MSI_CLOSED_CENSUS);
  push(&queue, 3, 1, 31, 0);
  push(&queue, 4, 1, 22, 0); /* in time for it */
  CHECK(next_batch_by(&alike, &queue) == 24 && next_batch_by(&alike, &queue) == 3);
  msi_queue_close(&queue);
}

static void test_rows_of_other_dimensions_do_not_fill_a_batch(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 4, 11, 0);
  push(&queue, 2, 9, 21, 0);
  CHECK(msi_batch_decide(&alike, &queue, 2, 3, 0) == MSI_OPEN);
  push(&queue, 3, 6, 12, 0);
  CHECK(msi_batch_decide(&alike, &queue, 2, 3, 0) == MSI_CLOSED_ROWS);
  msi_queue_close(&queue);
}

static void test_none_starves_whatever_dimensions_the_others_have(void) {
  msi_queue queue;
  CHECK(!msi_queue_open(&queue));
  push(&queue, 1, 5, 11, 0);
  push(&queue, 9, 1, 21, -100);
  int batches = 1;
  for (; batches < 3 * MSI_FAIR_TURN; batches++) {
    push(&queue, 1, 5, 12, 100);
    push(&queue, 2, 5, 31, 50);
    if (next_batch_by(&alike, &queue) == 9) break;
  }
  CHECK(batches <= 2 * MSI_FAIR_TURN);
  while (queue.n) next_batch_by(&alike, &queue);
  for (uint32_t i = 0; i < 60; i++) push(&queue, 1 + i % 9, 3, 10 * (i % 7), 0);
  for (batches = 0; queue.n; batches++) { /* without priorities the oldest is always in it */
    uint64_t oldest = msi_queue_at(&queue, 0)->sequence;
    int digits = next_batch_by(&alike, &queue);
    while (digits >= 10) digits /= 10;
    CHECK((uint64_t)digits == oldest);
  }
  CHECK(batches < 60);
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
  test_a_batch_takes_whole_requests_in_order();
  test_the_largest_request_fits_alone();
  test_higher_priorities_come_first_and_equal_ones_in_order();
  test_none_overtakes_an_earlier_one_of_its_lane();
  test_a_large_request_is_not_passed_by_lower_ones();
  test_the_lowest_is_served_within_so_many_batches();
  test_nothing_is_lost_doubled_or_reordered_in_a_lane();
  test_what_is_removed_leaves_the_others_in_order();
  test_a_limited_queue_takes_no_more_rows_but_any_request_when_empty();
  test_a_full_queue_closes_a_batch();
  test_a_request_waits_for_others_half_of_its_time();
  test_rows_that_belong_together_wait_for_nobody_and_join_nobody();
  test_whole_requests_have_their_turns_by_priority();
  test_a_batch_has_requests_that_are_like_the_oldest();
  test_those_that_are_left_wait_for_nobody();
  test_rows_of_other_dimensions_do_not_fill_a_batch();
  test_none_starves_whatever_dimensions_the_others_have();
  return check_result();
}
