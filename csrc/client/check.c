#include "client/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "protocol/value.h"

enum { F16_EXPONENT = 0x7c00, BF16_EXPONENT = 0x7f80 };

/* ---- many at a time -------------------------------------------------------------------- */

/* The bits of values that may have any type. */
typedef uint16_t __attribute__((may_alias)) bits_16;
typedef uint32_t __attribute__((may_alias)) bits_32;
typedef uint64_t __attribute__((may_alias)) bits_64;

/* Without branches, so that compilers make vector instructions of them. */
#define ALL_FINITE(name, type, exponent) \
  static int name(const type *bits, size_t n) { \
    type bad = 0; \
    for (size_t i = 0; i < n; i++) bad |= (bits[i] & (exponent)) == (exponent); \
    return !bad; \
  }
ALL_FINITE(finite_16, bits_16, F16_EXPONENT)
ALL_FINITE(finite_b16, bits_16, BF16_EXPONENT)
ALL_FINITE(finite_32, bits_32, 0x7f800000U)
ALL_FINITE(finite_64, bits_64, 0x7ff0000000000000U)

/* A NaN is within no bounds. */
#define ALL_WITHIN(name, type) \
  static int name(const type *values, size_t n, double min, double max) { \
    int bad = 0; \
    for (size_t i = 0; i < n; i++) bad |= !((values[i] >= min) & (values[i] <= max)); \
    return !bad; \
  }
ALL_WITHIN(within_32, float)
ALL_WITHIN(within_64, double)

static int all_finite(int dtype, const void *data, size_t n) {
  switch (dtype) {
    case MPISERVE_FLOAT64: return finite_64(data, n);
    case MPISERVE_FLOAT32: return finite_32(data, n);
    case MPISERVE_FLOAT16: return finite_16(data, n);
    case MPISERVE_BFLOAT16: return finite_b16(data, n);
    default: return 1;
  }
}

static int is_within(const mpiserve_spec *spec, double value) {
  return value >= spec->min && value <= spec->max;
}

static int all_within(const mpiserve_spec *spec, const void *data, size_t n) {
  if (spec->dtype == MPISERVE_FLOAT64) return within_64(data, n, spec->min, spec->max);
  if (spec->dtype == MPISERVE_FLOAT32) return within_32(data, n, spec->min, spec->max);
  for (size_t i = 0; i < n; i++)
    if (!is_within(spec, msi_value_at(spec->dtype, data, i))) return 0;
  return 1;
}

/* ---- rows ------------------------------------------------------------------------------ */

/* The n values are parts: a complex number has two. */
static int passes(const mpiserve_spec *spec, const void *data, size_t n) {
  if ((spec->check & MPISERVE_FINITE) && !all_finite(msi_dtype_part(spec->dtype), data, n))
    return 0;
  return !(spec->check & MPISERVE_BOUNDS) || all_within(spec, data, n);
}

static size_t part_bytes(const mpiserve_spec *spec) {
  return mpiserve_dtype_size(msi_dtype_part(spec->dtype));
}

/* The first output of these rows that does not pass; -1: all pass. */
static int first_failed(const msi_side *outputs, int64_t row, int64_t rows, void *const *data) {
  for (int i = 0; i < outputs->n; i++) {
    const mpiserve_spec *spec = &outputs->specs[i];
    size_t bytes = outputs->row_bytes[i], values = bytes / part_bytes(spec);
    const char *begin = (const char *)data[i] + (size_t)row * bytes;
    if (spec->check && !passes(spec, begin, (size_t)rows * values)) return i;
  }
  return -1;
}

int msi_check_wanted(const msi_side *outputs) {
  int wanted = 0;
  for (int i = 0; i < outputs->n; i++) wanted |= outputs->specs[i].check;
  return wanted;
}

int msi_check_passes(const msi_side *outputs, int64_t rows, void *const *data) {
  return first_failed(outputs, 0, rows, data) < 0;
}

static void append_dims(const int64_t *dims, int n, char *text, size_t size) {
  for (int d = 0; d < n; d++)
    msi_text_append(text, size, "%s%lld", d ? ", " : "[", (long long)dims[d]);
  msi_text_append(text, size, "]");
}

/* Which element of a tensor without rows: ", element [17, 2] of [60, 4]". A scalar has one. */
static void append_element(const mpiserve_spec *spec, size_t element, const int64_t *shape,
                           char *text, size_t size) {
  int64_t at[MPISERVE_MAX_DIMS];
  if (!spec->ndim) return;
  for (int d = spec->ndim - 1; d >= 0; element /= (size_t)shape[d--])
    at[d] = (int64_t)(element % (size_t)shape[d]);
  msi_text_append(text, size, ", element ");
  append_dims(at, spec->ndim, text, size);
  msi_text_append(text, size, " of ");
  append_dims(shape, spec->ndim, text, size);
}

/* The value of a row that fails, and what it should be. */
static void say(const msi_side *outputs, int i, int64_t row, const void *data,
                const msi_check_shapes *shapes, char *text, size_t size) {
  const mpiserve_spec *spec = &outputs->specs[i];
  size_t bytes = outputs->row_bytes[i], k = 0;
  const char *begin = (const char *)data + (size_t)row * bytes;
  while (passes(spec, begin + k * part_bytes(spec), 1)) k++;
  double value = msi_value_at(msi_dtype_part(spec->dtype), begin, k);
  snprintf(text, size, "output '%s'", spec->name);
  if (outputs->has_rows)
    msi_text_append(text, size, ", row %lld", (long long)row);
  else
    append_element(spec, k * part_bytes(spec) / mpiserve_dtype_size(spec->dtype),
                   shapes ? (*shapes)[i] : spec->shape, text, size);
  if ((spec->check & MPISERVE_FINITE) && !isfinite(value))
    msi_text_append(text, size, ": a value is %g", value);
  else
    msi_text_append(text, size, ": %g is not within %g to %g", value, spec->min, spec->max);
}

static void say_uncertain(const msi_side *outputs, int64_t row, const float *data,
                          msi_doubts *doubts) {
  char which[32] = "the answer";
  if (outputs->has_rows) snprintf(which, sizeof which, "row %lld", (long long)row);
  snprintf(doubts->text, sizeof doubts->text,
           "%s is not trusted: its uncertainty is %g, and the limit %g", which, (double)data[row],
           outputs->specs[outputs->n - 1].max);
}

/* The uncertainty is the last output, so a row that fails otherwise counts as that. */
void msi_check_rows(const msi_side *outputs, int64_t rows, void *const *data,
                    const msi_check_shapes *shapes, msi_doubts *doubts) {
  doubts->n = doubts->failed = 0;
  for (int64_t row = 0; row < rows; row++) {
    int i = first_failed(outputs, row, 1, data);
    if (i < 0) continue;
    int fails = i < msi_side_seen(outputs);
    if (fails && !doubts->failed)
      say(outputs, i, row, data[i], shapes, doubts->text, sizeof doubts->text);
    else if (!doubts->n)
      say_uncertain(outputs, row, data[i], doubts);
    doubts->failed += fails;
    doubts->rows[doubts->n++] = row;
  }
}
