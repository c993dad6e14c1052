#include "head/row_pool.h"

#include <stdlib.h>

#include "check.h"

/* Free ranges are sorted, none is empty, and none touches the next. */
static int sound(const msi_row_pool *pool) {
  uint32_t free_rows = 0;
  for (uint32_t i = 0; i < pool->n; i++) {
    if (!pool->free[i].rows) return 0;
    if (i && pool->free[i - 1].begin + pool->free[i - 1].rows >= pool->free[i].begin) return 0;
    free_rows += pool->free[i].rows;
  }
  return pool->n <= pool->capacity && free_rows + pool->used == pool->rows;
}

static void test_first_fit_makes_neighbours(void) {
  msi_row_pool pool;
  msi_range a, b, c;
  CHECK(!msi_row_pool_open(&pool, 100));
  CHECK(msi_row_pool_take(&pool, 10, &a) && a.begin == 0 && a.rows == 10);
  CHECK(msi_row_pool_take(&pool, 20, &b) && b.begin == 10 && b.rows == 20);
  CHECK(msi_row_pool_take(&pool, 30, &c) && c.begin == 30 && c.rows == 30);
  msi_row_pool_give(&pool, a);
  CHECK(msi_row_pool_take(&pool, 11, &a) && a.begin == 60);
  CHECK(msi_row_pool_take(&pool, 10, &b) && b.begin == 0);
  CHECK(sound(&pool));
  msi_row_pool_close(&pool);
}

static void test_takes_all_and_no_more(void) {
  msi_row_pool pool;
  msi_range all, none;
  CHECK(!msi_row_pool_open(&pool, 8));
  CHECK(!msi_row_pool_take(&pool, 9, &none));
  CHECK(!msi_row_pool_take(&pool, 0, &none));
  CHECK(msi_row_pool_take(&pool, 8, &all) && all.begin == 0 && pool.used == 8 && pool.n == 0);
  CHECK(!msi_row_pool_take(&pool, 1, &none));
  msi_row_pool_give(&pool, all);
  CHECK(pool.used == 0 && pool.taken == 0 && pool.n == 1 && pool.free[0].rows == 8);
  msi_row_pool_close(&pool);
}

/* Gives three neighbours back in the order that digits of which say. */
static void give_in_order(const char *which) {
  msi_row_pool pool;
  msi_range range[3];
  CHECK(!msi_row_pool_open(&pool, 30));
  for (int i = 0; i < 3; i++) CHECK(msi_row_pool_take(&pool, 10, &range[i]));
  for (int i = 0; i < 3; i++) {
    msi_row_pool_give(&pool, range[which[i] - '0']);
    CHECK(sound(&pool));
  }
  CHECK(pool.n == 1 && pool.free[0].begin == 0 && pool.free[0].rows == 30);
  msi_row_pool_close(&pool);
}

static void test_neighbours_join_in_any_order(void) {
  static const char *const orders[] = {"012", "021", "102", "120", "201", "210"};
  for (int i = 0; i < 6; i++) give_in_order(orders[i]);
}

static void test_nothing_can_be_given_back(void) {
  msi_row_pool pool;
  CHECK(!msi_row_pool_open(&pool, 4));
  msi_row_pool_give(&pool, (msi_range){0, 0});
  CHECK(sound(&pool) && pool.taken == 0 && pool.n == 1);
  msi_row_pool_close(&pool);
}

static void test_a_pool_without_rows(void) {
  msi_row_pool pool;
  msi_range range;
  CHECK(!msi_row_pool_open(&pool, 0));
  CHECK(!msi_row_pool_take(&pool, 1, &range) && sound(&pool));
  msi_row_pool_close(&pool);
}

enum { ROWS = 1000, HELD = 400, STEPS = 40000 };

static uint8_t map[ROWS];    /* 1: somebody has this row */
static msi_range held[HELD]; /* rows 0: nobody has this one */

static uint32_t longest_gap(void) {
  uint32_t longest = 0, run = 0;
  for (int row = 0; row < ROWS; row++) {
    run = map[row] ? 0 : run + 1;
    longest = run > longest ? run : longest;
  }
  return longest;
}

static void random_take(msi_row_pool *pool, int i, uint32_t rows) {
  uint32_t gap = longest_gap();
  int taken = msi_row_pool_take(pool, rows, &held[i]);
  CHECK(taken == (rows <= gap)); /* what fits is found, so free ranges do join */
  if (!taken) {
    held[i].rows = 0;
    return;
  }
  CHECK(held[i].rows == rows && held[i].begin + rows <= ROWS);
  for (uint32_t k = 0; k < rows; k++) CHECK(map[held[i].begin + k]++ == 0);
}

static void random_give(msi_row_pool *pool, int i) {
  memset(&map[held[i].begin], 0, held[i].rows);
  msi_row_pool_give(pool, held[i]);
  held[i].rows = 0;
}

/* Small ranges make many free ones, so that the list must grow; large ones fill. */
static void test_random_steps_against_a_map_of_rows(uint32_t largest) {
  msi_row_pool pool;
  CHECK(!msi_row_pool_open(&pool, ROWS));
  for (int step = 0; step < STEPS && !check_failures; step++) {
    int i = rand() % HELD;
    if (held[i].rows)
      random_give(&pool, i);
    else
      random_take(&pool, i, 1 + (uint32_t)rand() % largest);
    CHECK(sound(&pool));
  }
  for (int i = 0; i < HELD; i++)
    if (held[i].rows) random_give(&pool, i);
  CHECK(pool.n == 1 && pool.used == 0 && pool.taken == 0 && pool.free[0].rows == ROWS);
  msi_row_pool_close(&pool);
}

int main(void) {
  srand(1);
  test_first_fit_makes_neighbours();
  test_takes_all_and_no_more();
  test_neighbours_join_in_any_order();
  test_nothing_can_be_given_back();
  test_a_pool_without_rows();
  test_random_steps_against_a_map_of_rows(3);
  test_random_steps_against_a_map_of_rows(50);
  return check_result();
}
