/* When a head that waits may sleep, and how many clients wake it. */
#include "head/sleep.h"

#include "check.h"

static const int64_t DELAY_NS = 1000000, TAKEN_NS = 5000;

/* One row waits for those of three other clients. */
static msi_broker waiting(int special) {
  msi_broker broker = {.has_room = 1};
  broker.policy =
      (msi_policy){.special = special, .max_rows = 64, .alike_rows = 64, .max_delay_ns = DELAY_NS};
  broker.census = (msi_census){.able = 4, .asked = 1};
  CHECK(!msi_queue_open(&broker.queue));
  CHECK(!msi_queue_push(&broker.queue, (msi_entry){.rows = 1, .taken_ns = TAKEN_NS}));
  return broker;
}

static void test_the_last_one_that_is_missing_wakes_it(void) {
  msi_broker broker = waiting(MSI_PLAIN);
  int64_t until_ns = 0;
  CHECK(msi_sleep_may(&broker, &until_ns) && until_ns == TAKEN_NS + DELAY_NS);
  CHECK(msi_sleep_missing(&broker) == 3);
  broker.policy.alike_rows = 3; /* two more fill the batch */
  CHECK(msi_sleep_missing(&broker) == 2);
  msi_queue_close(&broker.queue);
}

static void test_each_one_wakes_it_where_answers_are_kept(void) {
  msi_broker broker = waiting(MSI_CACHED);
  int64_t until_ns = 0;
  CHECK(msi_sleep_may(&broker, &until_ns) && until_ns == TAKEN_NS + DELAY_NS);
  CHECK(msi_sleep_missing(&broker) == 1);
  msi_queue_close(&broker.queue);
}

int main(void) {
  test_the_last_one_that_is_missing_wakes_it();
  test_each_one_wakes_it_where_answers_are_kept();
  return check_result();
}
