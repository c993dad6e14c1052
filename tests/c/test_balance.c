#include "client/balance.h"

#include "check.h"

enum { MANY = 16 };

static msi_load loads[MANY];
static msi_balance balance;

static void start(int n, int client) { msi_balance_init(&balance, loads, n, 0, 0, client); }

/* One request of one row that replica i answers at once, alone in its batch or not. */
static void answer(int i, int64_t row_ns, int64_t others) {
  msi_balance_ended(&loads[i], 1);
  msi_balance_measure(&loads[i], 1, 1 + others, 0, row_ns * (1 + others));
}

static int ask(void) {
  int chosen = msi_balance_choose(&balance, 1);
  msi_balance_sent(&balance, chosen, 1);
  return chosen;
}

/* Asks n times, one request at a time, and counts who answers. */
static void ask_one_by_one(int n, const int64_t *row_ns, const int64_t *others, int *asked) {
  for (int i = 0; i < n; i++) {
    int chosen = ask();
    asked[chosen]++;
    answer(chosen, row_ns[chosen], others[chosen]);
  }
}

/* Of equals, others are only tried: 1 in 8 n once, then 1 in 64 n. */
static void test_equals_stay_at_home(void) {
  const int64_t row_ns[] = {100, 90, 110}, others[] = {7, 8, 6};
  int asked[3] = {0};
  start(3, 0);
  ask_one_by_one(6400, row_ns, others, asked);
  CHECK(asked[0] > 6250 && asked[1] > 20 && asked[2] > 20);
}

static void test_a_slow_home_is_left_and_tried_at_times(void) {
  const int64_t row_ns[] = {500, 100}, others[] = {0, 0};
  int asked[2] = {0};
  start(2, 0);
  ask_one_by_one(6400, row_ns, others, asked);
  CHECK(asked[1] > 6300);
  CHECK(asked[0] > 15 && asked[0] < 40); /* the first 8, and 1/64 of the time */
}

static void test_a_home_that_is_fast_again_is_gone_back_to(void) {
  const int64_t row_ns[] = {500, 100}, better[] = {100, 100}, others[] = {0, 0};
  int asked[2] = {0};
  start(2, 0);
  ask_one_by_one(100, row_ns, others, asked);
  asked[0] = asked[1] = 0;
  ask_one_by_one(1000, better, others, asked);
  CHECK(asked[0] > 500);
}

static void test_a_crowd_is_left(void) {
  const int64_t row_ns[] = {100, 100}, others[] = {15, 3};
  int asked[2] = {0};
  start(2, 0);
  ask_one_by_one(1000, row_ns, others, asked);
  CHECK(asked[1] > 900);
}

/* Rows that wait behind a batch are a crowd too. */
static void test_a_queue_is_a_crowd(void) {
  start(2, 0);
  loads[0].rows = loads[1].rows = 1;
  msi_balance_ended(&loads[0], 1);
  msi_balance_ended(&loads[1], 1);
  msi_balance_measure(&loads[0], 1, 1, 9, 100);
  msi_balance_measure(&loads[1], 1, 1, 2, 100);
  CHECK(msi_balance_choose(&balance, 1) == 1);
}

/* A batch that costs the same whatever its rows is no better if it is small. */
static void test_fixed_costs_are_shared_by_a_crowd(void) {
  start(2, 0);
  msi_balance_measure(&loads[0], 1, 16, 0, 1000);
  msi_balance_measure(&loads[1], 1, 1, 0, 1000);
  CHECK(msi_balance_choose(&balance, 1) == 0);
}

static void test_requests_under_way_go_by_speed(void) {
  int to[2] = {0};
  start(2, 0);
  msi_balance_measure(&loads[0], 1, 1, 0, 500);
  msi_balance_measure(&loads[1], 1, 1, 0, 100);
  for (int i = 0; i < 600; i++) to[ask()]++;
  CHECK(to[1] > 450 && to[1] < 550); /* 5 of 6 */
  CHECK(loads[0].rows == to[0] && loads[1].rows == to[1]);
}

static void test_unknown_replicas_share_what_is_under_way(void) {
  int to[4] = {0};
  start(4, 0);
  for (int i = 0; i < 400; i++) to[ask()]++;
  for (int i = 0; i < 4; i++) CHECK(to[i] > 80 && to[i] < 140);
}

/* Costs that are not measured, as of an echo, are no division by zero. */
static void test_requests_that_cost_nothing_go_by_the_crowd(void) {
  const int64_t row_ns[] = {0, 0}, others[] = {9, 1};
  int asked[2] = {0};
  start(2, 0);
  ask_one_by_one(1000, row_ns, others, asked);
  CHECK(asked[1] > 900);
}

static void test_one_bad_measurement_is_forgiven(void) {
  const int64_t row_ns[] = {100, 50}, others[] = {0, 0};
  int asked[2] = {0};
  start(2, 0);
  msi_balance_measure(&loads[1], 1, 1, 0, 100000000);
  ask_one_by_one(3000, row_ns, others, asked);
  CHECK(asked[1] > 1500);
}

static void test_stickiness_one_never_leaves(void) {
  const int64_t row_ns[] = {500, 100}, others[] = {15, 0};
  int asked[2] = {0};
  msi_balance_init(&balance, loads, 2, 0, 1, 5);
  ask_one_by_one(1000, row_ns, others, asked);
  CHECK(asked[0] == 1000);
}

/* Lock-step clients that all tried another replica in one step would leave home empty. */
static void test_clients_try_others_at_different_times(void) {
  int tries[9] = {0};
  for (int client = 0; client < 8; client++) {
    int step = 0;
    for (start(2, client); ask() == 0; step++) answer(0, 100, 7);
    CHECK(step < 9);
    tries[step]++;
  }
  for (int step = 0; step < 9; step++) CHECK(tries[step] <= 2);
}

static void answer_suspended(int i) {
  msi_balance_ended(&loads[i], 1);
  loads[i].suspended = 1;
}

/* The client leaves a suspended home, tries it now and then, and returns when it serves. */
static void test_a_suspended_replica_is_tried_now_and_then(void) {
  for (int sticky = 0; sticky < 2; sticky++) {
    int asked[3] = {0};
    msi_balance_init(&balance, loads, 3, 0, sticky, 0);
    for (int i = 0; i < 800; i++) {
      int chosen = ask();
      asked[chosen]++;
      if (chosen == 1) {
        answer(1, 100, 0);
        continue;
      }
      answer_suspended(chosen);
      int other = msi_balance_another(&balance, chosen, 1);
      CHECK(other != chosen);
    }
    CHECK(asked[1] > 650);
    CHECK(asked[0] > 20 && asked[0] < 70 && asked[2] > 20 && asked[2] < 70); /* 1 in 16 */
    while (loads[0].suspended) answer(ask(), 100, 0);
    int back = 0;
    for (int i = 0; i < 200; i++) {
      int chosen = ask();
      back += chosen == 0;
      answer(chosen, 100, 0);
    }
    CHECK(back > 150);
  }
}

/* Each is asked in turn, so that the one that serves again is found. */
static void test_all_that_rest_are_asked_in_turn(void) {
  int asked[3] = {0};
  start(3, 0);
  for (int i = 0, at = ask(); i < 300; i++) {
    answer_suspended(at);
    int next = msi_balance_another(&balance, at, 1);
    CHECK(next != at);
    msi_balance_sent(&balance, next, 1);
    at = next;
    asked[at]++;
  }
  for (int i = 0; i < 3; i++) CHECK(asked[i] >= 90);
}

static void test_a_dead_replica_is_never_tried_again(void) {
  const int64_t row_ns[] = {100, 100, 100}, others[] = {0, 0, 0};
  int asked[3] = {0};
  start(3, 0);
  ask_one_by_one(10, row_ns, others, asked);
  msi_balance_lose(&balance, 0);
  CHECK(balance.home != 0);
  msi_balance_measure(&loads[0], 1, 1, 0, 1); /* an answer that was there before */
  asked[0] = 0;
  ask_one_by_one(1000, row_ns, others, asked);
  CHECK(asked[0] == 0 && asked[1] && asked[2]);
  CHECK(msi_balance_another(&balance, 1, 1) == 2);
  msi_balance_lose(&balance, 2);
  CHECK(msi_balance_another(&balance, 1, 1) < 0);
  CHECK(msi_balance_choose(&balance, 1) == 1);
  msi_balance_lose(&balance, 1);
  CHECK(msi_balance_choose(&balance, 1) == balance.home);
}

int main(void) {
  test_a_dead_replica_is_never_tried_again();
  test_a_suspended_replica_is_tried_now_and_then();
  test_all_that_rest_are_asked_in_turn();
  test_equals_stay_at_home();
  test_a_slow_home_is_left_and_tried_at_times();
  test_a_home_that_is_fast_again_is_gone_back_to();
  test_a_crowd_is_left();
  test_a_queue_is_a_crowd();
  test_fixed_costs_are_shared_by_a_crowd();
  test_requests_under_way_go_by_speed();
  test_unknown_replicas_share_what_is_under_way();
  test_requests_that_cost_nothing_go_by_the_crowd();
  test_one_bad_measurement_is_forgiven();
  test_stickiness_one_never_leaves();
  test_clients_try_others_at_different_times();
  return check_result();
}
