#include "head/cache.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "check.h"

enum { ROWS = 4, MOST_KEY = 256 };

static msi_side inputs, outputs;
static mpiserve_spec specs[3];

static mpiserve_spec spec(const char *name, int dtype, int64_t columns) {
  mpiserve_spec made = {.dtype = dtype, .ndim = 2, .shape = {-1, columns}};
  snprintf(made.name, sizeof made.name, "%s", name);
  return made;
}

/* Of one input x and one output y. */
static msi_cache make(uint32_t rows, double step, int dtype, int64_t columns) {
  msi_cache cache;
  specs[0] = spec("x", dtype, columns);
  specs[2] = spec("y", MPISERVE_FLOAT64, 1);
  CHECK(!msi_side_init(&inputs, "input", 1, specs));
  CHECK(!msi_side_init(&outputs, "output", 1, specs + 2));
  CHECK(!msi_cache_open(&cache, rows, step, &inputs, &outputs));
  return cache;
}

static uint32_t find(msi_cache *cache, const void *x) {
  uint8_t key[MOST_KEY];
  return msi_cache_find(cache, key, msi_cache_key(cache, &x, 0, key));
}

static void keep(msi_cache *cache, const void *x, double y) {
  uint8_t key[MOST_KEY];
  uint64_t hash = msi_cache_key(cache, &x, 0, key);
  const void *results[] = {&y};
  msi_cache_keep(cache, key, hash, results, 0);
}

/* NAN: it is not kept. */
static double answer(msi_cache *cache, const void *x) {
  double y = NAN;
  void *results[] = {&y};
  uint32_t entry = find(cache, x);
  if (entry != MSI_NO_ENTRY) msi_cache_answer(cache, entry, results, 0);
  return y;
}

static int is_kept(msi_cache *cache, double x) { return find(cache, &x) != MSI_NO_ENTRY; }

static int are_equal(double step, double a, double b) {
  msi_cache cache = make(ROWS, step, MPISERVE_FLOAT64, 1);
  keep(&cache, &a, 1);
  int equal = is_kept(&cache, b);
  msi_cache_close(&cache);
  return equal;
}

/* ---- rows ------------------------------------------------------------------------------ */

static void test_a_row_has_the_answer_that_was_kept_for_it(void) {
  msi_cache cache = make(ROWS, 0, MPISERVE_FLOAT64, 2);
  double a[] = {1, 2}, b[] = {1, 3}, c[] = {2, 1};
  keep(&cache, a, 10);
  keep(&cache, b, 20);
  CHECK(answer(&cache, a) == 10 && answer(&cache, b) == 20 && isnan(answer(&cache, c)));
  keep(&cache, a, 30);
  CHECK(answer(&cache, a) == 10 && cache.n == 2); /* the first one stays */
  msi_cache_close(&cache);
}

static void test_rows_of_several_tensors_lie_anywhere(void) {
  msi_cache cache;
  specs[0] = spec("n", MPISERVE_INT8, 3);
  specs[1] = spec("x", MPISERVE_FLOAT64, 1);
  specs[2] = spec("y", MPISERVE_FLOAT64, 1);
  CHECK(!msi_side_init(&inputs, "input", 2, specs));
  CHECK(!msi_side_init(&outputs, "output", 1, specs + 2));
  CHECK(!msi_cache_open(&cache, ROWS, 0.5, &inputs, &outputs));
  int8_t n[] = {1, 2, 3, 4, 5, 6};
  double x[] = {1, 2}, y[] = {7, 8}, to[] = {0, 0};
  uint8_t key[MOST_KEY], packed[1 + sizeof x];
  memcpy(packed + 1, x, sizeof x); /* at an odd address, as in slots */
  const void *rows[] = {n, packed + 1}, *results[] = {y};
  void *found[] = {to};
  uint64_t hash = msi_cache_key(&cache, rows, 1, key);
  msi_cache_keep(&cache, key, hash, results, 1);
  CHECK(cache.key_bytes == 3 + 8);
  uint32_t entry = msi_cache_find(&cache, key, hash);
  CHECK(entry != MSI_NO_ENTRY);
  msi_cache_answer(&cache, entry, found, 0);
  CHECK(to[0] == 8 && to[1] == 0);
  hash = msi_cache_key(&cache, rows, 0, key);
  CHECK(msi_cache_find(&cache, key, hash) == MSI_NO_ENTRY);
  msi_cache_close(&cache);
}

static void test_the_whole_key_is_compared(void) {
  msi_cache cache = make(ROWS, 0, MPISERVE_FLOAT64, 1);
  double a = 1, b = 2, y[] = {10, 20};
  uint8_t ka[MOST_KEY], kb[MOST_KEY];
  const void *at[] = {&a}, *bt[] = {&b}, *results[] = {y};
  uint64_t hash = msi_cache_key(&cache, at, 0, ka);
  msi_cache_key(&cache, bt, 0, kb);
  msi_cache_keep(&cache, ka, hash, results, 0);
  CHECK(msi_cache_find(&cache, kb, hash) == MSI_NO_ENTRY); /* as if its hash were the same */
  msi_cache_keep(&cache, kb, hash, results, 1);
  CHECK(msi_cache_find(&cache, ka, hash) != msi_cache_find(&cache, kb, hash) && cache.n == 2);
  msi_cache_close(&cache);
}

static void test_it_keeps_so_many_rows_and_those_that_are_wanted(void) {
  msi_cache cache = make(ROWS, 0, MPISERVE_FLOAT64, 1);
  for (double x = 0; x < ROWS; x++) keep(&cache, &x, x);
  CHECK(is_kept(&cache, 0) && is_kept(&cache, 2));
  for (double x = 10; x < 12; x++) keep(&cache, &x, x);
  CHECK(cache.n == ROWS);
  CHECK(is_kept(&cache, 0) && !is_kept(&cache, 1) && is_kept(&cache, 2) && !is_kept(&cache, 3));
  CHECK(is_kept(&cache, 10) && is_kept(&cache, 11));
  for (double x = 20; x < 20 + ROWS; x++) keep(&cache, &x, x); /* all were wanted: all go */
  for (double x = 20; x < 20 + ROWS; x++) CHECK(answer(&cache, &x) == x);
  CHECK(!is_kept(&cache, 0) && !is_kept(&cache, 10));
  msi_cache_close(&cache);
}

static void test_it_forgets_everything(void) {
  msi_cache cache = make(1, 0, MPISERVE_FLOAT64, 1);
  double x = 1;
  msi_cache_forget(&cache);
  keep(&cache, &x, 10);
  msi_cache_forget(&cache);
  CHECK(isnan(answer(&cache, &x)));
  keep(&cache, &x, 20);
  CHECK(answer(&cache, &x) == 20);
  msi_cache_close(&cache);
}

/* Against a table of what was kept last by each number. */
static void test_many_rows(void) {
  enum { NUMBERS = 500, ROUNDS = 20000, KEPT = 100 };
  msi_cache cache = make(KEPT, 0, MPISERVE_FLOAT64, 1);
  uint64_t random = 1;
  int hits = 0;
  for (int i = 0; i < ROUNDS; i++) {
    random = random * 6364136223846793005U + 1442695040888963407U;
    double x = (double)((random >> 33) % (i % 4 ? KEPT / 2 : NUMBERS)); /* some more often */
    double y = answer(&cache, &x);
    if (isnan(y))
      keep(&cache, &x, 3 * x);
    else
      CHECK(y == 3 * x);
    hits += !isnan(y);
    CHECK(cache.n <= KEPT);
  }
  CHECK(hits > ROUNDS / 2);
  msi_cache_close(&cache);
}

static void test_it_says_how_much_memory_it_lacks(void) {
  msi_cache cache = make(1, 0, MPISERVE_FLOAT64, 1);
  msi_cache_close(&cache);
  specs[0] = spec("x", MPISERVE_FLOAT64, 1 << 27);
  CHECK(!msi_side_init(&inputs, "input", 1, specs));
  CHECK(msi_cache_open(&cache, 1 << 20, 0, &inputs, &outputs) == MPISERVE_ENOMEM);
  CHECK_TEXT(mpiserve_last_error(), "1048576 rows of");
  msi_cache_close(&cache);
}

/* ---- what is equal ---------------------------------------------------------------------- */

static void test_without_a_step_the_bits_are_compared(void) {
  CHECK(are_equal(0, 1, 1) && !are_equal(0, 1, 1 + DBL_EPSILON));
  CHECK(!are_equal(0, 0.0, -0.0));
  CHECK(are_equal(0, NAN, NAN) && !are_equal(0, NAN, -NAN));
}

static void test_numbers_are_rounded_to_the_nearest_step(void) {
  CHECK(are_equal(0.5, 1, 1.2) && are_equal(0.5, 1, 0.8) && !are_equal(0.5, 1, 1.3));
  CHECK(are_equal(1, 0, nextafter(0.5, 0)) && !are_equal(1, 0, 0.5) && are_equal(1, 1, 0.5));
  CHECK(are_equal(1, 0, nextafter(-0.5, 0)) && !are_equal(1, 0, -0.5) && are_equal(1, -1, -0.5));
  CHECK(are_equal(1, 2, nextafter(2.5, 0)) && are_equal(1, 3, 2.5));
  CHECK(are_equal(1, 0x1p51 + 1, nextafter(0x1p51 + 1.5, 0)));
  CHECK(!are_equal(1, 0x1p51, 0x1p51 + 1));
}

static void test_what_is_no_number_of_steps_stays_itself(void) {
  CHECK(are_equal(1, 0.0, -0.0) && are_equal(1, -0.25, 0.25));
  CHECK(are_equal(1, NAN, -NAN) && !are_equal(1, NAN, 0) && !are_equal(1, NAN, INFINITY));
  CHECK(are_equal(1, INFINITY, INFINITY) && !are_equal(1, INFINITY, -INFINITY));
  CHECK(!are_equal(1, INFINITY, DBL_MAX) && !are_equal(1e-300, 1e300, 2e300));
  CHECK(!are_equal(1e-9, 1e17, nextafter(1e17, 0)));
  for (double large = 1; large < 1e300; large *= 1e10) /* no large number is a count of steps */
    for (double steps = 1; steps < 0x1p52; steps *= 8)
      CHECK(!are_equal(1e-20, large, steps * 1e-20));
}

static void test_every_floating_dtype_is_rounded_and_no_other(void) {
  float x[] = {1, 1.2F}, odd[] = {1, 1.3F};
  msi_cache cache = make(ROWS, 0.5, MPISERVE_FLOAT32, 1);
  keep(&cache, &x[0], 1);
  CHECK(answer(&cache, &x[1]) == 1 && isnan(answer(&cache, &odd[1])));
  msi_cache_close(&cache);
  cache = make(ROWS, 0.5, MPISERVE_COMPLEX64, 1);
  keep(&cache, x, 1);
  x[0] = 0.9F;
  CHECK(answer(&cache, x) == 1 && isnan(answer(&cache, odd)));
  msi_cache_close(&cache);
  uint16_t half[] = {0x3c00, 0x3c01, 0x3e00}, brain[] = {0x3f80, 0x3f81, 0x3fc0}; /* 1, more, 1.5 */
  cache = make(ROWS, 0.5, MPISERVE_FLOAT16, 1);
  keep(&cache, half, 1);
  CHECK(answer(&cache, half + 1) == 1 && isnan(answer(&cache, half + 2)));
  msi_cache_close(&cache);
  cache = make(ROWS, 0.5, MPISERVE_BFLOAT16, 1);
  keep(&cache, brain, 1);
  CHECK(answer(&cache, brain + 1) == 1 && isnan(answer(&cache, brain + 2)));
  msi_cache_close(&cache);
  int32_t whole[] = {4, 5};
  cache = make(ROWS, 10, MPISERVE_INT32, 1);
  keep(&cache, whole, 1);
  CHECK(answer(&cache, whole) == 1 && isnan(answer(&cache, whole + 1)));
  msi_cache_close(&cache);
  uint64_t large[] = {UINT64_MAX, UINT64_MAX - 1};
  cache = make(ROWS, 10, MPISERVE_UINT64, 1);
  keep(&cache, large, 1);
  CHECK(answer(&cache, large) == 1 && isnan(answer(&cache, large + 1)));
  msi_cache_close(&cache);
}

int main(void) {
  test_a_row_has_the_answer_that_was_kept_for_it();
  test_rows_of_several_tensors_lie_anywhere();
  test_the_whole_key_is_compared();
  test_it_keeps_so_many_rows_and_those_that_are_wanted();
  test_it_forgets_everything();
  test_many_rows();
  test_it_says_how_much_memory_it_lacks();
  test_without_a_step_the_bits_are_compared();
  test_numbers_are_rounded_to_the_nearest_step();
  test_what_is_no_number_of_steps_stays_itself();
  test_every_floating_dtype_is_rounded_and_no_other();
  return check_result();
}
