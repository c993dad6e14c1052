#include "protocol/tensor.h"

#include "check.h"

/* A signature of x: float32 [rows, 3, 4] and flag: bool [rows]. */
static const mpiserve_spec specs[] = {
    {.name = "x", .dtype = MPISERVE_FLOAT32, .ndim = 3, .shape = {-1, 3, 4}},
    {.name = "flag", .dtype = MPISERVE_BOOL, .ndim = 1, .shape = {-1}},
};
static float x_data[24];
static char flag_data[2];

static msi_side side_of_specs(void) {
  msi_side side;
  CHECK(!msi_side_init(&side, "input", 2, specs));
  return side;
}

static mpiserve_tensor x_tensor(int64_t rows) {
  return (mpiserve_tensor){NULL, x_data, MPISERVE_FLOAT32, 3, {rows, 3, 4}};
}

static mpiserve_tensor flag_tensor(int64_t rows) {
  return (mpiserve_tensor){NULL, flag_data, MPISERVE_BOOL, 1, {rows}};
}

/* Matches x and flag against the signature. */
static int match(mpiserve_tensor x, mpiserve_tensor flag, int64_t *rows, void **data) {
  msi_side side = side_of_specs();
  const mpiserve_tensor tensors[] = {x, flag};
  *rows = MSI_ANY_ROWS;
  return msi_side_match(&side, "flame", 2, tensors, rows, data);
}

static int match_code(mpiserve_tensor x, mpiserve_tensor flag) {
  int64_t rows;
  void *data[2];
  return match(x, flag, &rows, data);
}

static void test_dtypes(void) {
  static const size_t sizes[] = {1, 1, 1, 2, 4, 8, 2, 2, 4, 8, 2, 4, 8, 8, 16};
  for (int dtype = MPISERVE_BOOL; dtype <= MPISERVE_COMPLEX128; dtype++) {
    CHECK(mpiserve_dtype_size(dtype) == sizes[dtype]);
    CHECK(mpiserve_dtype_name(dtype) && mpiserve_dtype_name(dtype)[0]);
  }
  CHECK(!strcmp(mpiserve_dtype_name(MPISERVE_BFLOAT16), "bfloat16"));
  CHECK(!mpiserve_dtype_name(-1) && !mpiserve_dtype_size(-1));
  CHECK(!strcmp(mpiserve_dtype_name(MPISERVE_UINT32), "uint32"));
  CHECK(!strcmp(mpiserve_dtype_name(MPISERVE_COMPLEX128), "complex128"));
  int beyond = MPISERVE_COMPLEX128 + 1;
  CHECK(!mpiserve_dtype_name(beyond) && !mpiserve_dtype_size(beyond));
}

static void test_bytes_of_a_row(void) {
  msi_side side = side_of_specs();
  CHECK(side.n == 2 && side.row_bytes[0] == 48 && side.row_bytes[1] == 1);
  CHECK(side.total_row_bytes == 49);
}

static int init_code(mpiserve_spec spec) {
  msi_side side;
  return msi_side_init(&side, "output", 1, &spec);
}

static void test_signatures_that_are_wrong(void) {
  mpiserve_spec spec = {.name = "y", .dtype = MPISERVE_INT8, .ndim = 2, .shape = {-1, 2}};
  CHECK(init_code(spec) == MPISERVE_OK);
  spec.dtype = MPISERVE_COMPLEX128 + 1;
  CHECK(init_code(spec) == MPISERVE_EDTYPE);
  CHECK_TEXT(mpiserve_last_error(), "output 'y'");
  spec.dtype = MPISERVE_INT8;
  spec.shape[1] = 0;
  CHECK(init_code(spec) == MPISERVE_ESHAPE);
  spec.shape[1] = 2;
  spec.shape[0] = -2;
  CHECK(init_code(spec) == MPISERVE_ESHAPE);
  spec.shape[0] = -1;
  spec.ndim = MPISERVE_MAX_DIMS + 1;
  CHECK(init_code(spec) == MPISERVE_ESHAPE);
  spec.ndim = -1;
  CHECK(init_code(spec) == MPISERVE_ESHAPE);
  spec.ndim = 1;
  memset(spec.name, 'n', sizeof spec.name); /* no final zero */
  CHECK(init_code(spec) == MPISERVE_ENAME);
  spec.name[0] = 0;
  CHECK(init_code(spec) == MPISERVE_ENAME);
}

/* The products of the last two are 2^64 and more: to 64 bits they are 0. */
static void test_rows_that_no_memory_holds(void) {
  mpiserve_spec spec = {.name = "y", .dtype = MPISERVE_FLOAT64, .ndim = 4};
  const int64_t lengths[][3] = {
      {1 << 22, 1 << 22, 2}, {1 << 30, 1 << 30, 2}, {1 << 30, 1 << 30, 1 << 30}};
  memcpy(spec.shape, (int64_t[]){-1, 1 << 22, 1 << 22, 1}, 4 * sizeof(int64_t));
  CHECK(init_code(spec) == MPISERVE_OK);
  for (int i = 0; i < 3; i++) {
    memcpy(spec.shape + 1, lengths[i], sizeof lengths[i]);
    CHECK(init_code(spec) == MPISERVE_ESHAPE);
    CHECK_TEXT(mpiserve_last_error(), "output 'y': a row of float64 [rows, ");
    CHECK_TEXT(mpiserve_last_error(), "has more than 2^47 bytes");
  }
}

static void test_two_tensors_of_one_name(void) {
  mpiserve_spec twice[] = {specs[0], specs[1]};
  msi_side side;
  memcpy(twice[1].name, "x", 2);
  CHECK(msi_side_init(&side, "input", 2, twice) == MPISERVE_ENAME);
  CHECK_TEXT(mpiserve_last_error(), "two inputs are named 'x'");
}

static void test_number_of_tensors_of_a_signature(void) {
  mpiserve_spec many[MPISERVE_MAX_TENSORS];
  msi_side side;
  for (int i = 0; i < MPISERVE_MAX_TENSORS; i++) {
    many[i] = specs[0];
    many[i].name[0] = (char)('a' + i);
  }
  CHECK(!msi_side_init(&side, "input", MPISERVE_MAX_TENSORS, many));
  CHECK(msi_side_init(&side, "input", MPISERVE_MAX_TENSORS + 1, many) == MPISERVE_ESHAPE);
  CHECK(msi_side_init(&side, "input", -1, many) == MPISERVE_ESHAPE);
}

static void test_matches_by_position_and_by_name(void) {
  mpiserve_tensor x = x_tensor(2), flag = flag_tensor(2);
  int64_t rows;
  void *data[2];
  CHECK(!match(x, flag, &rows, data));
  CHECK(rows == 2 && data[0] == x_data && data[1] == flag_data);
  x.name = "x";
  flag.name = "flag";
  CHECK(!match(flag, x, &rows, data));
  CHECK(rows == 2 && data[0] == x_data && data[1] == flag_data);
}

static void test_names(void) {
  mpiserve_tensor x = x_tensor(2), flag = flag_tensor(2);
  x.name = "xx";
  CHECK(match_code(x, flag) == MPISERVE_ENAME);
  CHECK_TEXT(mpiserve_last_error(), "service 'flame'");
  CHECK_TEXT(mpiserve_last_error(), "'xx' is unknown");
  CHECK_TEXT(mpiserve_last_error(), "x, flag");
  x.name = "x";
  CHECK(match_code(x, x) == MPISERVE_ENAME);
  CHECK_TEXT(mpiserve_last_error(), "'x' is given twice");
}

static void test_dtype_of_a_call(void) {
  mpiserve_tensor x = x_tensor(2);
  x.dtype = MPISERVE_FLOAT64;
  CHECK(match_code(x, flag_tensor(2)) == MPISERVE_EDTYPE);
  CHECK_TEXT(mpiserve_last_error(), "input 'x': dtype is float64, the signature says float32");
  x.dtype = 99;
  CHECK(match_code(x, flag_tensor(2)) == MPISERVE_EDTYPE);
  CHECK_TEXT(mpiserve_last_error(), "unknown");
}

static void test_shape_of_a_call(void) {
  mpiserve_tensor x = x_tensor(2);
  x.shape[2] = 5;
  CHECK(match_code(x, flag_tensor(2)) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "shape is [2, 3, 5], the signature says [rows, 3, 4]");
  x = x_tensor(2);
  x.ndim = 2;
  CHECK(match_code(x, flag_tensor(2)) == MPISERVE_ESHAPE);
  x.ndim = 1000; /* a wrong number must not make anybody read on */
  CHECK(match_code(x, flag_tensor(2)) == MPISERVE_ESHAPE);
}

static void test_rows_of_a_call(void) {
  CHECK(match_code(x_tensor(2), flag_tensor(1)) == MPISERVE_EROWS);
  CHECK_TEXT(mpiserve_last_error(), "input 'flag': 1 rows");
  CHECK(match_code(x_tensor(0), flag_tensor(0)) == MPISERVE_EROWS);
  CHECK(match_code(x_tensor(-1), flag_tensor(-1)) == MPISERVE_EROWS);
  CHECK_TEXT(mpiserve_last_error(), "at least 1");
}

static void test_rows_of_the_outputs_are_those_of_the_inputs(void) {
  msi_side side = side_of_specs();
  const mpiserve_tensor tensors[] = {x_tensor(2), flag_tensor(2)};
  int64_t rows = 1;
  void *data[2];
  CHECK(msi_side_match(&side, "flame", 2, tensors, &rows, data) == MPISERVE_EROWS);
}

static void test_rows_that_are_allowed_to_be_none(void) {
  msi_side side = side_of_specs();
  mpiserve_tensor tensors[] = {x_tensor(0), flag_tensor(0)};
  int64_t rows = MSI_ANY_ROWS;
  void *data[2];
  side.least_rows = 0;
  tensors[0].data = NULL;
  CHECK(!msi_side_match(&side, "flame", 2, tensors, &rows, data));
  CHECK(rows == 0 && data[0] && data[1] == flag_data);
  tensors[0] = x_tensor(2);
  rows = MSI_ANY_ROWS;
  CHECK(msi_side_match(&side, "flame", 2, tensors, &rows, data) == MPISERVE_EROWS);
  CHECK_TEXT(mpiserve_last_error(), "input 'flag': 0 rows, other tensors");
}

/* ---- tensors without rows -------------------------------------------------------- */

static const mpiserve_spec whole_specs[] = {
    {.name = "w", .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {3, 4}},
    {.name = "a", .dtype = MPISERVE_FLOAT64}};

static int match_whole(mpiserve_tensor w, mpiserve_tensor a) {
  msi_side side;
  const mpiserve_tensor tensors[] = {w, a};
  int64_t rows = MSI_ANY_ROWS;
  void *data[2];
  CHECK(!msi_side_init(&side, "input", 2, whole_specs));
  CHECK(side.row_bytes[0] == 48 && side.row_bytes[1] == 8);
  int code = msi_side_match(&side, "field", 2, tensors, &rows, data);
  CHECK(code || (rows == 1 && data[0] == w.data && data[1] == a.data));
  return code;
}

static void test_tensors_without_rows(void) {
  mpiserve_tensor w = {NULL, x_data, MPISERVE_FLOAT32, 2, {3, 4}};
  mpiserve_tensor a = {NULL, flag_data, MPISERVE_FLOAT64, 0, {0}};
  CHECK(!match_whole(w, a));
  a.ndim = 1;
  a.shape[0] = 1;
  CHECK(!match_whole(w, a)); /* a scalar of Fortran */
  a.shape[0] = 2;
  CHECK(match_whole(w, a) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "input 'a': shape is [2], the signature says []");
  a.ndim = 0;
  w.shape[0] = 2;
  CHECK(match_whole(w, a) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "input 'w': shape is [2, 4], the signature says [3, 4]");
  w.shape[0] = 3;
  w.data = NULL;
  CHECK(match_whole(w, a) == MPISERVE_EARG);
}

static void test_all_tensors_have_rows_or_none_has(void) {
  mpiserve_spec mixed[] = {specs[0], whole_specs[1]};
  msi_side side;
  CHECK(msi_side_init(&side, "input", 2, mixed) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "input 'x' has a dimension of rows, and 'a' has none");
}

static void test_missing_data_and_missing_tensors(void) {
  msi_side side = side_of_specs();
  mpiserve_tensor x = x_tensor(2);
  int64_t rows = 0;
  void *data[2];
  CHECK(msi_side_match(&side, "flame", 1, &x, &rows, data) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "1 inputs given, the signature has 2 (x, flag)");
  x.data = NULL;
  CHECK(match_code(x, flag_tensor(2)) == MPISERVE_EARG);
}

static void test_equal_sides(void) {
  mpiserve_spec other[2] = {specs[0], specs[1]};
  msi_side a = side_of_specs(), b;
  CHECK(!msi_side_init(&b, "output", 2, other) && msi_side_equal(&a, &b));
  other[0].shape[2] = 5;
  CHECK(!msi_side_init(&b, "input", 2, other) && !msi_side_equal(&a, &b));
  other[0].shape[2] = 4;
  other[1].dtype = MPISERVE_UINT8;
  CHECK(!msi_side_init(&b, "input", 2, other) && !msi_side_equal(&a, &b));
  other[1].dtype = MPISERVE_BOOL;
  other[1].name[0] = 'F';
  CHECK(!msi_side_init(&b, "input", 2, other) && !msi_side_equal(&a, &b));
  CHECK(!msi_side_init(&b, "input", 1, specs) && !msi_side_equal(&a, &b));
}

/* ---- free dimensions ------------------------------------------------------------------ */

/* image: float32 [rows, 3, up to 8, up to 5], and scale: float64 [rows]. */
static const mpiserve_spec images[] = {
    {.name = "image",
     .dtype = MPISERVE_FLOAT32,
     .ndim = 4,
     .shape = {-1, 3, -1, -1},
     .max_shape = {0, 0, 8, 5}},
    {.name = "scale", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}},
};

static void test_free_dimensions_have_room_for_the_largest(void) {
  msi_side side, actual;
  const uint32_t dims[] = {2, 5};
  int64_t shapes[2 * MPISERVE_MAX_DIMS];
  CHECK(!msi_side_init(&side, "input", 2, images) && side.has_rows && side.n_free == 2);
  CHECK(side.row_bytes[0] == 3 * 8 * 5 * 4 && side.total_row_bytes == 480 + 8);
  CHECK(side.dims_bytes == 8 && side.eager_row_bytes == side.total_row_bytes + 8);
  msi_side_of_dims(&side, dims, &actual);
  CHECK(actual.row_bytes[0] == 120 && actual.row_bytes[1] == 8 && actual.total_row_bytes == 128);
  msi_side_shapes(&side, 7, dims, shapes);
  CHECK(shapes[0] == 7 && shapes[1] == 3 && shapes[2] == 2 && shapes[3] == 5 && shapes[8] == 7);
}

static void test_free_dimensions_are_checked_once_they_are_copied(void) {
  static const uint32_t bad[][2] = {{0, 5}, {9, 5}, {8, 6}, {UINT32_MAX, 1}, {1, 0}};
  msi_side side;
  const uint32_t good[] = {8, 5};
  CHECK(!msi_side_init(&side, "input", 2, images) && msi_side_has_dims(&side, good));
  for (int i = 0; i < 5; i++) CHECK(!msi_side_has_dims(&side, bad[i]));
  side.least_rows = 0;
  CHECK(msi_side_has_dims(&side, bad[0]) && !msi_side_has_dims(&side, bad[1]));
}

static void test_a_call_with_free_dimensions(void) {
  static const int64_t wrong[][3] = {{3, 9, 1}, {3, 1, 6}, {2, 1, 1}, {3, 0, 1}, {3, -1, 1}};
  msi_given given;
  msi_side side;
  int64_t rows = MSI_ANY_ROWS;
  void *data[2];
  mpiserve_tensor call[] = {{NULL, x_data, MPISERVE_FLOAT32, 4, {2, 3, 7, 4}},
                            {NULL, x_data, MPISERVE_FLOAT64, 1, {2}}};
  CHECK(!msi_side_init(&side, "input", 2, images));
  side.given = &given;
  CHECK(!msi_side_match(&side, "s", 2, call, &rows, data) && rows == 2 && data[0] == x_data);
  CHECK(given.dims[0] == 7 && given.dims[1] == 4 && given.position[1] == 1);
  for (int i = 0; i < 5; i++) {
    memcpy(&call[0].shape[1], wrong[i], sizeof wrong[i]);
    rows = MSI_ANY_ROWS;
    CHECK(msi_side_match(&side, "s", 2, call, &rows, data) == MPISERVE_ESHAPE);
  }
  CHECK_TEXT(mpiserve_last_error(), "signature says [rows, 3, up to 8, up to 5]");
  memcpy(&call[0].shape[1], (int64_t[]){3, 1, 1}, 3 * sizeof(int64_t));
  call[1].shape[0] = 3;
  CHECK(msi_side_match(&side, "s", 2, call, &rows, data) == MPISERVE_EROWS);
}

static void test_signatures_whose_free_dimensions_are_wrong(void) {
  msi_side side;
  mpiserve_spec many[5], one = images[0];
  one.max_shape[3] = 0;
  CHECK(msi_side_init(&side, "input", 1, &one) == MPISERVE_ESHAPE);
  one.max_shape[3] = INT64_C(1) << 31;
  CHECK(msi_side_init(&side, "input", 1, &one) == MPISERVE_ESHAPE);
  one.max_shape[2] = one.max_shape[3] = INT32_MAX;
  CHECK(msi_side_init(&side, "input", 1, &one) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "has more than 2^47 bytes");
  for (int i = 0; i < 5; i++) {
    many[i] = (mpiserve_spec){.dtype = MPISERVE_BOOL, .ndim = 8};
    snprintf(many[i].name, sizeof many[i].name, "x%d", i);
    for (int d = 0; d < 8; d++) many[i].shape[d] = -1;
    for (int d = 1; d < 8; d++) many[i].max_shape[d] = 2;
  }
  CHECK(!msi_side_init(&side, "input", 4, many) && side.n_free == 28);
  CHECK(msi_side_init(&side, "input", 5, many) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "35 free dimensions, the limit is 32");
  one = images[0];
  one.max_shape[0] = 4; /* no rows, then */
  CHECK(!msi_side_init(&side, "input", 1, &one) && !side.has_rows && side.n_free == 3);
  msi_side a, b;
  CHECK(!msi_side_init(&a, "input", 2, images) && !msi_side_init(&b, "input", 1, images));
  CHECK(!msi_side_init(&b, "input", 1, &one) && !msi_side_equal(&a, &b));
}

int main(void) {
  test_dtypes();
  test_bytes_of_a_row();
  test_signatures_that_are_wrong();
  test_rows_that_no_memory_holds();
  test_two_tensors_of_one_name();
  test_number_of_tensors_of_a_signature();
  test_matches_by_position_and_by_name();
  test_names();
  test_dtype_of_a_call();
  test_shape_of_a_call();
  test_rows_of_a_call();
  test_rows_of_the_outputs_are_those_of_the_inputs();
  test_rows_that_are_allowed_to_be_none();
  test_tensors_without_rows();
  test_all_tensors_have_rows_or_none_has();
  test_missing_data_and_missing_tensors();
  test_equal_sides();
  test_free_dimensions_have_room_for_the_largest();
  test_free_dimensions_are_checked_once_they_are_copied();
  test_a_call_with_free_dimensions();
  test_signatures_whose_free_dimensions_are_wrong();
  return check_result();
}
