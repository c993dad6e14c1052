#include "client/extrapolate.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/check.h"

int msi_extrapolate_can(const mpiserve_service *service) {
  const msi_side *side = &service->endpoint->layout.outputs;
  for (int i = 0; i < side->n; i++) {
    int part = msi_dtype_part(side->specs[i].dtype);
    if (part != MPISERVE_FLOAT32 && part != MPISERVE_FLOAT64)
      return msi_error(MPISERVE_EARG,
                       "service '%s', output '%s': %s cannot be extrapolated, but float32, "
                       "float64 and complex can: hold the answers, or convert this output",
                       service->name, side->specs[i].name,
                       mpiserve_dtype_name(side->specs[i].dtype));
  }
  return MPISERVE_OK;
}

static void extend_float(size_t n, const float *before, const float *last, float ahead,
                         float *restrict to) {
  for (size_t i = 0; i < n; i++) to[i] = last[i] + ahead * (last[i] - before[i]);
}

static void extend_double(size_t n, const double *before, const double *last, double ahead,
                          double *restrict to) {
  for (size_t i = 0; i < n; i++) to[i] = last[i] + ahead * (last[i] - before[i]);
}

static void extend(int dtype, size_t bytes, const void *before, const void *last, double ahead,
                   void *to) {
  if (msi_dtype_part(dtype) == MPISERVE_FLOAT32)
    extend_float(bytes / sizeof(float), before, last, (float)ahead, to);
  else
    extend_double(bytes / sizeof(double), before, last, ahead, to);
}

static void hold_row(const msi_side *side, int64_t row, void *const *last, void *const *outputs) {
  for (int i = 0; i < side->n; i++) {
    size_t bytes = side->row_bytes[i], at = (size_t)row * bytes;
    memcpy((char *)outputs[i] + at, (const char *)last[i] + at, bytes);
  }
}

/* The rows that fail the check are held; their number. -1: no memory. */
static int64_t hold_failed(const mpiserve_service *service, const msi_side *side, int64_t rows,
                           void *const *last, void *const *outputs) {
  char text[256];
  if (!service->checked || msi_check_passes(side, rows, outputs)) return 0;
  int64_t *failed = malloc((size_t)rows * sizeof *failed);
  if (!failed) return -1;
  int64_t n = msi_check_failed(side, rows, outputs, NULL, failed, text, sizeof text);
  int together = service->head->description.rows != MPISERVE_INDEPENDENT;
  for (int64_t i = 0; i < (together ? rows : n); i++)
    hold_row(side, together ? i : failed[i], last, outputs);
  free(failed);
  return together ? rows : n;
}

int msi_extrapolate(const mpiserve_service *service, const msi_side *side, int64_t rows,
                    void *const *before, void *const *last, double ahead, void *const *outputs,
                    int64_t *extrapolated) {
  for (int i = 0; i < side->n; i++)
    extend(side->specs[i].dtype, (size_t)rows * side->row_bytes[i], before[i], last[i], ahead,
           outputs[i]);
  int64_t held = hold_failed(service, side, rows, last, outputs);
  if (held < 0) return msi_error(MPISERVE_ENOMEM, "no memory for rows that failed the check");
  *extrapolated = rows - held;
  return MPISERVE_OK;
}
