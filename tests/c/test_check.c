/* The check of results: which rows fail, of each dtype, and what the text says. */
#include "client/check.h"

#include <math.h>

#include "check.h"

enum { ROWS = 67, COLUMNS = 3 };

static mpiserve_spec spec_of(int dtype, int check, double min, double max) {
  return (mpiserve_spec){.name = "y",
                         .dtype = dtype,
                         .ndim = 2,
                         .shape = {-1, COLUMNS},
                         .check = check,
                         .min = min,
                         .max = max};
}

/* The rows that fail of a tensor; -1 if the quick look and the thorough one differ. */
static int64_t failed_of(const mpiserve_spec *spec, void *data, int64_t *failed, char *text) {
  msi_side side;
  CHECK(!msi_side_init(&side, "output", 1, spec));
  CHECK(msi_check_wanted(&side) == spec->check);
  int64_t n = msi_check_failed(&side, ROWS, &data, failed, text, 256);
  return msi_check_passes(&side, ROWS, &data) == !n ? n : -1;
}

#define CHECK_FLOATS(type, dtype) \
  do { \
    type y[ROWS * COLUMNS]; \
    int64_t failed[ROWS]; \
    char text[256] = ""; \
    mpiserve_spec finite = spec_of(dtype, MPISERVE_FINITE, 0, 0); \
    mpiserve_spec bounds = spec_of(dtype, MPISERVE_BOUNDS, -1, 100); \
    mpiserve_spec above = spec_of(dtype, MPISERVE_BOUNDS, 0, INFINITY); \
    mpiserve_spec both = spec_of(dtype, MPISERVE_BOUNDS | MPISERVE_FINITE, 0, INFINITY); \
    for (int i = 0; i < ROWS * COLUMNS; i++) y[i] = (type)(i % 100); \
    CHECK(failed_of(&finite, y, failed, text) == 0); \
    CHECK(failed_of(&bounds, y, failed, text) == 0); \
    y[5] = (type)INFINITY; \
    CHECK(failed_of(&finite, y, failed, text) == 1 && failed[0] == 1); \
    CHECK_TEXT(text, "output 'y', row 1: a value is inf"); \
    CHECK(failed_of(&bounds, y, failed, text) == 1); \
    CHECK_TEXT(text, "row 1: inf is not within -1 to 100"); \
    CHECK(failed_of(&above, y, failed, text) == 0); \
    CHECK(failed_of(&both, y, failed, text) == 1); \
    y[5] = 0; \
    y[COLUMNS * ROWS - 1] = (type)NAN; \
    y[6] = (type) - INFINITY; \
    CHECK(failed_of(&finite, y, failed, text) == 2 && failed[0] == 2 && failed[1] == ROWS - 1); \
    CHECK(failed_of(&bounds, y, failed, text) == 2); \
    CHECK(failed_of(&above, y, failed, text) == 2); \
    y[6] = (type)101; \
    CHECK(failed_of(&finite, y, failed, text) == 1 && failed[0] == ROWS - 1); \
    CHECK_TEXT(text, "nan"); \
    CHECK(failed_of(&bounds, y, failed, text) == 2); \
    CHECK_TEXT(text, "row 2: 101 is not within -1 to 100"); \
  } while (0)

/* Of 16 bits: 1, the largest, the smallest, infinity and NaN as bits. */
static void check_halves(int dtype, uint16_t one, uint16_t largest, uint16_t least, uint16_t inf,
                         uint16_t nan, double largest_value) {
  uint16_t y[ROWS * COLUMNS];
  int64_t failed[ROWS];
  char text[256] = "";
  mpiserve_spec finite = spec_of(dtype, MPISERVE_FINITE, 0, 0);
  mpiserve_spec bounds = spec_of(dtype, MPISERVE_BOUNDS, 0, largest_value);
  mpiserve_spec below = spec_of(dtype, MPISERVE_BOUNDS, -1, largest_value * 0.99);
  mpiserve_spec above = spec_of(dtype, MPISERVE_BOUNDS, 1e-44, largest_value);
  for (int i = 0; i < ROWS * COLUMNS; i++) y[i] = one;
  CHECK(failed_of(&finite, y, failed, text) == 0);
  y[4] = largest;
  y[7] = least;
  CHECK(failed_of(&finite, y, failed, text) == 0);
  CHECK(failed_of(&bounds, y, failed, text) == 0);
  CHECK(failed_of(&above, y, failed, text) == 0);
  CHECK(failed_of(&below, y, failed, text) == 1 && failed[0] == 1);
  y[4] = one | 0x8000;
  CHECK(failed_of(&bounds, y, failed, text) == 1);
  CHECK_TEXT(text, "row 1: -1 is not within 0 to");
  y[4] = inf;
  y[9] = nan;
  y[12] = inf | 0x8000;
  CHECK(failed_of(&finite, y, failed, text) == 3 && failed[2] == 4);
  CHECK(failed_of(&bounds, y, failed, text) == 3);
}

#define CHECK_WHOLE(type, dtype, least, greatest) \
  do { \
    type y[ROWS * COLUMNS] = {0}; \
    int64_t failed[ROWS]; \
    char text[256] = ""; \
    mpiserve_spec finite = spec_of(dtype, MPISERVE_FINITE, 0, 0); \
    mpiserve_spec bounds = spec_of(dtype, MPISERVE_BOUNDS, least, (greatest) - 1.0); \
    y[0] = (type)(least); \
    y[200] = (type)((greatest) - 1); \
    CHECK(failed_of(&finite, y, failed, text) == 0); \
    CHECK(failed_of(&bounds, y, failed, text) == 0); \
    y[199] = (type)(greatest); \
    CHECK(failed_of(&bounds, y, failed, text) == 1 && failed[0] == 66); \
  } while (0)

static void check_wrong_specs(void) {
  mpiserve_spec nan = spec_of(MPISERVE_FLOAT32, MPISERVE_BOUNDS, NAN, 1);
  mpiserve_spec crossed = spec_of(MPISERVE_FLOAT32, MPISERVE_BOUNDS, 2, 1);
  mpiserve_spec unknown = spec_of(MPISERVE_FLOAT32, 4, 0, 0);
  msi_side side;
  CHECK(msi_side_init(&side, "output", 1, &nan) == MPISERVE_ECONFIG);
  CHECK(msi_side_init(&side, "output", 1, &crossed) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "output 'y': check is 2, of values from 2 to 1");
  CHECK(msi_side_init(&side, "output", 1, &unknown) == MPISERVE_ECONFIG);
}

int main(void) {
  CHECK_FLOATS(float, MPISERVE_FLOAT32);
  CHECK_FLOATS(double, MPISERVE_FLOAT64);
  check_halves(MPISERVE_FLOAT16, 0x3c00, 0x7bff, 0x0001, 0x7c00, 0x7e01, 65504);
  check_halves(MPISERVE_BFLOAT16, 0x3f80, 0x7f7f, 0x0080, 0x7f80, 0x7f81, 3.3895313892515355e38);
  CHECK_WHOLE(int8_t, MPISERVE_INT8, -128, 127);
  CHECK_WHOLE(uint8_t, MPISERVE_UINT8, 0, 255);
  CHECK_WHOLE(int16_t, MPISERVE_INT16, -32768, 32767);
  CHECK_WHOLE(int32_t, MPISERVE_INT32, INT32_MIN, INT32_MAX);
  CHECK_WHOLE(int64_t, MPISERVE_INT64, -9007199254740992, 9007199254740992);
  CHECK_WHOLE(uint8_t, MPISERVE_BOOL, 0, 1);
  check_wrong_specs();
  return check_result();
}
