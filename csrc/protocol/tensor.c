#include "protocol/tensor.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "protocol/slot.h"

static const struct {
  const char *name;
  size_t size;
} dtypes[] = {
    [MPISERVE_BOOL] = {"bool", 1},
    [MPISERVE_UINT8] = {"uint8", 1},
    [MPISERVE_INT8] = {"int8", 1},
    [MPISERVE_INT16] = {"int16", 2},
    [MPISERVE_INT32] = {"int32", 4},
    [MPISERVE_INT64] = {"int64", 8},
    [MPISERVE_FLOAT16] = {"float16", 2},
    [MPISERVE_BFLOAT16] = {"bfloat16", 2},
    [MPISERVE_FLOAT32] = {"float32", 4},
    [MPISERVE_FLOAT64] = {"float64", 8},
    [MPISERVE_UINT16] = {"uint16", 2},
    [MPISERVE_UINT32] = {"uint32", 4},
    [MPISERVE_UINT64] = {"uint64", 8},
    [MPISERVE_COMPLEX64] = {"complex64", 8},
    [MPISERVE_COMPLEX128] = {"complex128", 16},
};

static int dtype_valid(int dtype) {
  return dtype >= 0 && dtype < (int)(sizeof dtypes / sizeof dtypes[0]);
}

const char *mpiserve_dtype_name(int dtype) {
  return dtype_valid(dtype) ? dtypes[dtype].name : NULL;
}

size_t mpiserve_dtype_size(int dtype) { return dtype_valid(dtype) ? dtypes[dtype].size : 0; }

int msi_dtype_part(int dtype) {
  if (dtype == MPISERVE_COMPLEX64) return MPISERVE_FLOAT32;
  return dtype == MPISERVE_COMPLEX128 ? MPISERVE_FLOAT64 : dtype;
}

/* Writes "[rows, 3, 4]" for people. most: the largest free dimensions, as "1 to 64"; or NULL. */
static const char *shape_text(char *text, size_t size, int ndim, const int64_t *shape,
                              const int64_t *most) {
  if (ndim < 0 || ndim > MPISERVE_MAX_DIMS) {
    snprintf(text, size, "of %d dimensions", ndim);
    return text;
  }
  size_t at = (size_t)snprintf(text, size, "[");
  for (int d = 0; d < ndim && at < size; d++) {
    const char *comma = d ? ", " : "";
    if (shape[d] < 0 && most && most[d] > 0)
      at += (size_t)snprintf(text + at, size - at, "%sup to %lld", comma, (long long)most[d]);
    else if (shape[d] < 0)
      at += (size_t)snprintf(text + at, size - at, "%srows", comma);
    else
      at += (size_t)snprintf(text + at, size - at, "%s%lld", comma, (long long)shape[d]);
  }
  if (at < size) snprintf(text + at, size - at, "]");
  return text;
}

static int64_t largest(const mpiserve_spec *spec, int d) {
  return msi_spec_is_free(spec, d) ? spec->max_shape[d] : spec->shape[d];
}

static int spec_check(const char *what, const mpiserve_spec *spec) {
  if (!spec->name[0] || !memchr(spec->name, 0, sizeof spec->name))
    return msi_error(MPISERVE_ENAME, "an %s has no name, or one over %d bytes", what,
                     MPISERVE_NAME_SIZE - 1);
  if (!dtype_valid(spec->dtype))
    return msi_error(MPISERVE_EDTYPE, "%s '%s': %d is no dtype", what, spec->name, spec->dtype);
  if (spec->ndim < 0 || spec->ndim > MPISERVE_MAX_DIMS)
    return msi_error(MPISERVE_ESHAPE, "%s '%s': %d dimensions, the limit is %d", what, spec->name,
                     spec->ndim, MPISERVE_MAX_DIMS);
  for (int d = msi_spec_has_rows(spec); d < spec->ndim; d++)
    if (largest(spec, d) < 1 || largest(spec, d) > INT32_MAX)
      return msi_error(MPISERVE_ESHAPE, "%s '%s': dimension %d is %lld, at most %lld", what,
                       spec->name, d, (long long)spec->shape[d], (long long)spec->max_shape[d]);
  if ((spec->check & ~(MPISERVE_FINITE | MPISERVE_BOUNDS)) ||
      ((spec->check & MPISERVE_BOUNDS) && !(spec->min <= spec->max)))
    return msi_error(MPISERVE_ECONFIG, "%s '%s': check is %d, of values from %g to %g", what,
                     spec->name, spec->check, spec->min, spec->max);
  if ((spec->check & MPISERVE_BOUNDS) && msi_dtype_part(spec->dtype) != spec->dtype)
    return msi_error(MPISERVE_ECONFIG, "%s '%s': %s has no order, so it has no bounds", what,
                     spec->name, dtypes[spec->dtype].name);
  return MPISERVE_OK;
}

static int row_too_large(const char *what, const mpiserve_spec *spec) {
  char shape[128];
  return msi_error(MPISERVE_ESHAPE, "%s '%s': a row of %s %s has more than 2^%d bytes", what,
                   spec->name, dtypes[spec->dtype].name,
                   shape_text(shape, sizeof shape, spec->ndim, spec->shape, spec->max_shape),
                   MSI_MOST_BITS);
}

/* The product may exceed every integer: it is checked before it is made. */
static int spec_row_bytes(const char *what, const mpiserve_spec *spec, size_t *bytes) {
  *bytes = dtypes[spec->dtype].size;
  for (int d = msi_spec_has_rows(spec); d < spec->ndim; d++) {
    if ((size_t)largest(spec, d) > MSI_MOST_BYTES / *bytes) return row_too_large(what, spec);
    *bytes *= (size_t)largest(spec, d);
  }
  return MPISERVE_OK;
}

static int spec_find(const msi_side *side, const char *name) {
  for (int i = 0; i < side->n; i++)
    if (!strcmp(side->specs[i].name, name)) return i;
  return -1;
}

static int mixed_rows(const msi_side *side, int i) {
  const mpiserve_spec *with = &side->specs[i], *without = &side->specs[0];
  if (!msi_spec_has_rows(with)) with = &side->specs[0], without = &side->specs[i];
  return msi_error(MPISERVE_ESHAPE, "%s '%s' has a dimension of rows, and '%s' has none",
                   side->what, with->name, without->name);
}

int msi_side_init(msi_side *side, const char *what, int n, const mpiserve_spec *specs) {
  if (n < 0 || n > MPISERVE_MAX_TENSORS)
    return msi_error(MPISERVE_ESHAPE, "%d %ss, the limit is %d", n, what, MPISERVE_MAX_TENSORS);
  *side = (msi_side){.what = what, .n = n, .specs = specs, .least_rows = 1};
  side->has_rows = !n || msi_spec_has_rows(&specs[0]);
  for (int i = 0; i < n; i++) {
    int code = spec_check(what, &specs[i]);
    if (code) return code;
    if (msi_spec_has_rows(&specs[i]) != msi_spec_has_rows(&specs[0])) return mixed_rows(side, i);
    if (spec_find(side, specs[i].name) < i)
      return msi_error(MPISERVE_ENAME, "two %ss are named '%s'", what, specs[i].name);
    code = spec_row_bytes(what, &specs[i], &side->row_bytes[i]);
    if (code) return code;
    side->total_row_bytes += side->row_bytes[i];
    for (int d = 0; d < specs[i].ndim; d++) side->n_free += msi_spec_is_free(&specs[i], d);
  }
  side->n_plain = side->has_rows && !side->n_free ? n : -1;
  side->dims_bytes = ((size_t)side->n_free * sizeof(uint32_t) + 7) / 8 * 8;
  side->eager_row_bytes = side->total_row_bytes + side->dims_bytes;
  if (side->n_free <= MPISERVE_MAX_FREE) return MPISERVE_OK;
  return msi_error(MPISERVE_ESHAPE, "the %ss have %d free dimensions, the limit is %d", what,
                   side->n_free, MPISERVE_MAX_FREE);
}

static int is_uncertainty(const mpiserve_spec *spec, int has_rows) {
  return spec->dtype == MPISERVE_FLOAT32 && spec->check == MPISERVE_BOUNDS &&
         spec->ndim == has_rows;
}

int msi_side_init_outputs(msi_side *side, const mpiserve_description *description) {
  int hidden = description->uncertain != 0;
  int code = msi_side_init(side, "output", description->n_outputs + hidden, description->outputs);
  if (code || !hidden) return code;
  if (!is_uncertainty(&side->specs[side->n - 1], side->has_rows))
    return msi_error(MPISERVE_ECONFIG,
                     "service '%s': the uncertainty must be one float32 for each row, with bounds",
                     description->name);
  side->n_hidden = 1;
  side->n_plain -= side->n_plain > 0;
  return MPISERVE_OK;
}

/* ---- free dimensions ------------------------------------------------------------------ */

int msi_side_has_dims(const msi_side *side, const uint32_t *dims) {
  for (int i = 0; i < side->n; i++)
    for (int d = 0; d < side->specs[i].ndim; d++) {
      if (!msi_spec_is_free(&side->specs[i], d)) continue;
      if (*dims < side->least_rows || *dims > side->specs[i].max_shape[d]) return 0;
      dims++;
    }
  return 1;
}

void msi_side_of_dims(const msi_side *side, const uint32_t *dims, msi_side *actual) {
  *actual = *side;
  actual->total_row_bytes = 0;
  for (int i = 0; i < side->n; i++) {
    const mpiserve_spec *spec = &side->specs[i];
    size_t bytes = dtypes[spec->dtype].size;
    for (int d = msi_spec_has_rows(spec); d < spec->ndim; d++)
      bytes *= msi_spec_is_free(spec, d) ? *dims++ : (size_t)spec->shape[d];
    actual->row_bytes[i] = bytes;
    actual->total_row_bytes += bytes;
  }
}

size_t msi_side_place(const msi_side *side, int64_t rows, size_t at, uint8_t *memory, void **data) {
  for (int i = 0; i < side->n; i++) {
    if (memory) data[i] = memory + at;
    at += ((size_t)rows * side->row_bytes[i] + MSI_ALIGN - 1) / MSI_ALIGN * MSI_ALIGN;
  }
  return at;
}

int msi_side_dims(const msi_side *side, const int64_t *shapes, uint32_t *dims) {
  for (int i = 0; i < side->n; i++) {
    const mpiserve_spec *spec = &side->specs[i];
    for (int d = msi_spec_has_rows(spec); d < spec->ndim; d++) {
      int64_t length = shapes[i * MPISERVE_MAX_DIMS + d];
      int is_free = msi_spec_is_free(spec, d);
      if (is_free ? length < side->least_rows || length > spec->max_shape[d]
                  : length != spec->shape[d])
        return 0;
      if (is_free) *dims++ = (uint32_t)length;
    }
  }
  return 1;
}

void msi_side_shapes(const msi_side *side, int64_t rows, const uint32_t *dims, int64_t *shapes) {
  for (int i = 0; i < side->n; i++) {
    const mpiserve_spec *spec = &side->specs[i];
    for (int d = 0; d < spec->ndim; d++)
      shapes[i * MPISERVE_MAX_DIMS + d] = msi_spec_is_free(spec, d) ? *dims++ : spec->shape[d];
    if (msi_spec_has_rows(spec)) shapes[i * MPISERVE_MAX_DIMS] = rows;
  }
}

/* ---- calls ------------------------------------------------------------------------------ */

/* The tensors of the signature, for messages: "state, pressure". */
static const char *names_text(char *text, size_t size, const msi_side *side) {
  size_t at = 0;
  text[0] = 0;
  for (int i = 0; i < msi_side_seen(side) && at < size; i++)
    at += (size_t)snprintf(text + at, size - at, "%s%s", i ? ", " : "", side->specs[i].name);
  return text;
}

static int shape_matches(const mpiserve_spec *spec, const mpiserve_tensor *tensor) {
  if (tensor->ndim != spec->ndim) return 0;
  for (int d = 1; d < spec->ndim; d++)
    if (tensor->shape[d] != spec->shape[d]) return 0;
  return 1;
}

/* Of any tensor, but for the number of rows. Fortran gives a scalar as one row. */
static int any_shape_matches(const mpiserve_spec *spec, const mpiserve_tensor *tensor,
                             int64_t least) {
  if (!spec->ndim) return !tensor->ndim || (tensor->ndim == 1 && tensor->shape[0] == 1);
  if (tensor->ndim != spec->ndim) return 0;
  for (int d = msi_spec_has_rows(spec); d < spec->ndim; d++) {
    int64_t length = tensor->shape[d];
    if (msi_spec_is_free(spec, d) ? length < least || length > spec->max_shape[d]
                                  : length != spec->shape[d])
      return 0;
  }
  return 1;
}

static int wrong_dtype(const msi_side *side, const char *service, const mpiserve_spec *spec,
                       const mpiserve_tensor *tensor) {
  return msi_error(MPISERVE_EDTYPE, "service '%s', %s '%s': dtype is %s, the signature says %s",
                   service, side->what, spec->name,
                   dtype_valid(tensor->dtype) ? dtypes[tensor->dtype].name : "unknown",
                   dtypes[spec->dtype].name);
}

static int wrong_shape(const msi_side *side, const char *service, const mpiserve_spec *spec,
                       const mpiserve_tensor *tensor) {
  char want[128], got[128];
  return msi_error(MPISERVE_ESHAPE, "service '%s', %s '%s': shape is %s, the signature says %s",
                   service, side->what, spec->name,
                   shape_text(got, sizeof got, tensor->ndim, tensor->shape, NULL),
                   shape_text(want, sizeof want, spec->ndim, spec->shape, spec->max_shape));
}

/* 0 rows need no memory: then *data becomes an address that nothing is read from. */
static int no_data(const msi_side *side, const char *service, const mpiserve_spec *spec,
                   int64_t rows, void **data) {
  static char nothing;
  *data = &nothing;
  if (!rows) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "service '%s', %s '%s': data is NULL", service, side->what,
                   spec->name);
}

static int wrong_rows(const msi_side *side, const char *service, const mpiserve_spec *spec,
                      int64_t given, int64_t rows) {
  const char *why = "other tensors of the call have more or less";
  if (rows < 0) why = "at least 1 is needed, unless the service has allow_empty";
  return msi_error(MPISERVE_EROWS, "service '%s', %s '%s': %lld rows, %s", service, side->what,
                   spec->name, (long long)given, why);
}

static int tensor_check(const msi_side *side, const char *service, const mpiserve_spec *spec,
                        const mpiserve_tensor *tensor, int64_t *rows, void **data) {
  if (tensor->dtype != spec->dtype) return wrong_dtype(side, service, spec, tensor);
  if (!shape_matches(spec, tensor)) return wrong_shape(side, service, spec, tensor);
  *data = tensor->data;
  if (!*data && no_data(side, service, spec, tensor->shape[0], data)) return MPISERVE_EARG;
  if (*rows < 0 && tensor->shape[0] >= side->least_rows) *rows = tensor->shape[0];
  if (tensor->shape[0] == *rows) return MPISERVE_OK;
  return wrong_rows(side, service, spec, tensor->shape[0], *rows);
}

static int has_values(const mpiserve_tensor *tensor) {
  for (int d = 0; d < tensor->ndim; d++)
    if (!tensor->shape[d]) return 0;
  return 1;
}

/* Checks a tensor without rows, or of a side with free dimensions. */
static int any_check(const msi_side *side, const char *service, const mpiserve_spec *spec,
                     const mpiserve_tensor *tensor, int64_t *rows, void **data) {
  int64_t n = msi_spec_has_rows(spec) ? tensor->shape[0] : 1;
  if (tensor->dtype != spec->dtype) return wrong_dtype(side, service, spec, tensor);
  if (!any_shape_matches(spec, tensor, side->least_rows))
    return wrong_shape(side, service, spec, tensor);
  if (*rows < 0 && n >= side->least_rows) *rows = n;
  if (n != *rows) return wrong_rows(side, service, spec, n, *rows);
  *data = tensor->data;
  return *data ? MPISERVE_OK : no_data(side, service, spec, has_values(tensor), data);
}

static void note(msi_given *given, int at, int i, const mpiserve_tensor *tensor) {
  memcpy(given->shapes[at], tensor->shape, sizeof given->shapes[at]);
  given->position[at] = i;
}

/* The place in the signature of tensor i of a call; -1: it has none, or it is taken. */
static int find_place(const msi_side *side, const char *service, int i,
                      const mpiserve_tensor *tensors, uint32_t *taken) {
  char names[256];
  int at = tensors[i].name ? spec_find(side, tensors[i].name) : i;
  if (at >= msi_side_seen(side)) at = -1;
  if (at >= 0 && !(*taken >> at & 1)) {
    *taken |= UINT32_C(1) << at;
    return at;
  }
  msi_error(MPISERVE_ENAME, "service '%s': %s '%s' is %s; the signature has %s", service,
            side->what, at < 0 ? tensors[i].name : side->specs[at].name,
            at < 0 ? "unknown" : "given twice", names_text(names, sizeof names, side));
  return -1;
}

static int wrong_number(const msi_side *side, const char *service, int n) {
  char names[256];
  return msi_error(MPISERVE_ESHAPE, "service '%s': %d %ss given, the signature has %d (%s)",
                   service, n, side->what, msi_side_seen(side),
                   names_text(names, sizeof names, side));
}

/* As msi_side_match(), of any tensors. Those without rows are one row. */
static int match_any(const msi_side *side, const char *service, int n,
                     const mpiserve_tensor *tensors, int64_t *rows, void **data) {
  if (n != msi_side_seen(side)) return wrong_number(side, service, n);
  uint32_t taken = 0;
  for (int i = 0; i < n; i++) {
    int at = find_place(side, service, i, tensors, &taken);
    if (at < 0) return MPISERVE_ENAME;
    int code = any_check(side, service, &side->specs[at], &tensors[i], rows, &data[at]);
    if (code) return code;
    if (side->given) note(side->given, at, i, &tensors[i]);
  }
  if (side->given) msi_side_dims(side, side->given->shapes[0], side->given->dims);
  return MPISERVE_OK;
}

int msi_side_match(const msi_side *side, const char *service, int n, const mpiserve_tensor *tensors,
                   int64_t *rows, void **data) {
  if (n != side->n_plain)
    return side->n_plain < 0 ? match_any(side, service, n, tensors, rows, data)
                             : wrong_number(side, service, n);
  uint32_t taken = 0;
  for (int i = 0; i < n; i++) {
    int at = find_place(side, service, i, tensors, &taken);
    if (at < 0) return MPISERVE_ENAME;
    int code = tensor_check(side, service, &side->specs[at], &tensors[i], rows, &data[at]);
    if (code) return code;
  }
  return MPISERVE_OK;
}

static int same_check(const mpiserve_spec *s, const mpiserve_spec *t) {
  if (s->check != t->check) return 0;
  return !(s->check & MPISERVE_BOUNDS) || (s->min == t->min && s->max == t->max);
}

int msi_side_equal(const msi_side *a, const msi_side *b) {
  if (a->n != b->n || a->n_hidden != b->n_hidden) return 0;
  for (int i = 0; i < a->n; i++) {
    const mpiserve_spec *s = &a->specs[i], *t = &b->specs[i];
    if (strcmp(s->name, t->name) || s->dtype != t->dtype || s->ndim != t->ndim) return 0;
    if (!same_check(s, t)) return 0;
    if (memcmp(s->shape, t->shape, sizeof s->shape[0] * (size_t)s->ndim)) return 0;
    if (memcmp(s->max_shape, t->max_shape, sizeof s->shape[0] * (size_t)s->ndim)) return 0;
  }
  return 1;
}
