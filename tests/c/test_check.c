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
  int64_t n = msi_check_failed(&side, ROWS, &data, NULL, failed, text, 256);
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

/* A complex value is finite if both parts are; a row has twice as many parts as values. */
#define CHECK_COMPLEX(type, dtype) \
  do { \
    type y[ROWS * COLUMNS * 2] = {0}; \
    int64_t failed[ROWS]; \
    char text[256] = ""; \
    mpiserve_spec finite = spec_of(dtype, MPISERVE_FINITE, 0, 0); \
    CHECK(failed_of(&finite, y, failed, text) == 0); \
    y[2 * COLUMNS * 4 + 1] = (type)INFINITY; \
    CHECK(failed_of(&finite, y, failed, text) == 1 && failed[0] == 4); \
    CHECK_TEXT(text, "output 'y', row 4: a value is inf"); \
    y[2 * COLUMNS * ROWS - 1] = (type)NAN; \
    y[0] = (type)NAN; \
    CHECK(failed_of(&finite, y, failed, text) == 3 && failed[2] == ROWS - 1); \
    CHECK_TEXT(text, "row 0: a value is nan"); \
  } while (0)

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

/* Of tensors without rows the element is told, of a scalar nothing. */
static void check_elements(void) {
  const msi_check_shapes found = {{5, 2, COLUMNS}};
  double complex_y[2 * 5 * 2 * COLUMNS] = {0}, energy = NAN;
  int64_t failed;
  char text[256] = "";
  void *y = complex_y, *e = &energy;
  msi_side side;
  mpiserve_spec nodes = {.name = "y",
                         .dtype = MPISERVE_COMPLEX128,
                         .ndim = 3,
                         .shape = {-1, -1, COLUMNS},
                         .max_shape = {9, 2, COLUMNS},
                         .check = MPISERVE_FINITE};
  mpiserve_spec scalar = {.name = "e", .dtype = MPISERVE_FLOAT64, .check = MPISERVE_FINITE};
  CHECK(!msi_side_init(&side, "output", 1, &nodes));
  side.row_bytes[0] = sizeof complex_y;
  complex_y[2 * ((3 * 2 + 1) * COLUMNS + 2) + 1] = NAN; /* an imaginary part */
  CHECK(msi_check_failed(&side, 1, &y, &found, &failed, text, sizeof text) == 1);
  CHECK_TEXT(text, "output 'y', element [3, 1, 2] of [5, 2, 3]: a value is nan");
  CHECK(!msi_side_init(&side, "output", 1, &scalar));
  CHECK(msi_check_failed(&side, 1, &e, NULL, &failed, text, sizeof text) == 1);
  CHECK_TEXT(text, "output 'e': a value is nan");
}

static void check_wrong_specs(void) {
  mpiserve_spec nan = spec_of(MPISERVE_FLOAT32, MPISERVE_BOUNDS, NAN, 1);
  mpiserve_spec crossed = spec_of(MPISERVE_FLOAT32, MPISERVE_BOUNDS, 2, 1);
  mpiserve_spec unknown = spec_of(MPISERVE_FLOAT32, 4, 0, 0);
  msi_side side;
  CHECK(msi_side_init(&side, "output", 1, &nan) == MPISERVE_ECONFIG);
  CHECK(msi_side_init(&side, "output", 1, &crossed) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "output 'y': check is 2, of values from 2 to 1");
  CHECK(msi_side_init(&side, "output", 1, &unknown) == MPISERVE_ECONFIG);
  for (int dtype = MPISERVE_COMPLEX64; dtype <= MPISERVE_COMPLEX128; dtype++) {
    mpiserve_spec bounds = spec_of(dtype, MPISERVE_BOUNDS, 0, 1);
    CHECK(msi_side_init(&side, "output", 1, &bounds) == MPISERVE_ECONFIG);
    CHECK_TEXT(mpiserve_last_error(), "has no order, so it has no bounds");
  }
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
  CHECK_WHOLE(uint16_t, MPISERVE_UINT16, 0, 65535);
  CHECK_WHOLE(uint32_t, MPISERVE_UINT32, 0, UINT32_MAX);
  CHECK_WHOLE(uint64_t, MPISERVE_UINT64, 0, 9007199254740992);
  CHECK_WHOLE(uint8_t, MPISERVE_BOOL, 0, 1);
  CHECK_COMPLEX(float, MPISERVE_COMPLEX64);
  CHECK_COMPLEX(double, MPISERVE_COMPLEX128);
  check_elements();
  check_wrong_specs();
  return check_result();
}
