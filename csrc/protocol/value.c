#include "protocol/value.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "mpiserve.h"

enum { F16_EXPONENT = 0x7c00, F16_DIGITS = 10 };

/* The exponent of a subnormal is that of the smallest normal. */
static double of_float16(uint16_t bits) {
  int exponent = (bits & F16_EXPONENT) >> F16_DIGITS, digits = bits & 0x3ff;
  double size = exponent ? (digits + 0x400) * (double)(1U << exponent) / (1 << 25)
                         : (double)digits / (1 << 24);
  if (exponent == 0x1f) size = digits ? NAN : INFINITY;
  return bits & 0x8000 ? -size : size;
}

static double of_bfloat16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

double msi_value_at(int dtype, const void *data, size_t i) {
  switch (dtype) {
    case MPISERVE_FLOAT64: return ((const double *)data)[i];
    case MPISERVE_FLOAT32: return ((const float *)data)[i];
    case MPISERVE_FLOAT16: return of_float16(((const uint16_t *)data)[i]);
    case MPISERVE_BFLOAT16: return of_bfloat16(((const uint16_t *)data)[i]);
    case MPISERVE_INT64: return (double)((const int64_t *)data)[i];
    case MPISERVE_INT32: return ((const int32_t *)data)[i];
    case MPISERVE_INT16: return ((const int16_t *)data)[i];
    case MPISERVE_INT8: return ((const int8_t *)data)[i];
    case MPISERVE_UINT64: return (double)((const uint64_t *)data)[i];
    case MPISERVE_UINT32: return ((const uint32_t *)data)[i];
    case MPISERVE_UINT16: return ((const uint16_t *)data)[i];
    default: return ((const uint8_t *)data)[i];
  }
}
