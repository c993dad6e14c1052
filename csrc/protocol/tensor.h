/* tensor: dtypes, shapes, bytes, and the check of a call against a signature.
 * No MPI calls. */
#ifndef MSI_TENSOR_H
#define MSI_TENSOR_H

#include "mpiserve.h"

/* The most bytes of a row, and of a section: more than a machine has, and so few that sums and
 * products of them do not overflow. */
enum { MSI_MOST_BITS = 47 };
#define MSI_MOST_BYTES ((size_t)1 << MSI_MOST_BITS)

/* The dtype of the real and the imaginary part of a complex dtype; every other is its own. */
int msi_dtype_part(int dtype);

/* One side (inputs or outputs) of a signature, and what follows from it. */
typedef struct msi_side {
  const char *what; /* "input" or "output", for messages */
  int n;
  const mpiserve_spec *specs;
  size_t row_bytes[MPISERVE_MAX_TENSORS]; /* at most; of a request, see msi_side_of_dims() */
  size_t total_row_bytes;                 /* of all tensors of this side */
  size_t dims_bytes;       /* of its free dimensions, which are sent before the payload */
  size_t slot_bytes;       /* the most bytes of a request that lie in its slot */
  size_t slot_at;          /* where they begin there: behind its times, if it is profiled */
  size_t eager_row_bytes;  /* no less than those of a row, and of these dimensions */
  int n_plain;             /* n; -1: the tensors have no rows, or free dimensions */
  int has_rows;            /* else one tensor is one row */
  int n_free;              /* free dimensions */
  int64_t least_rows;      /* of a call, and the least of a free dimension */
  struct msi_given *given; /* what msi_side_match() found of these; NULL: nobody wants to know */
} msi_side;

/* The shapes of the tensors of a call, and its free dimensions. */
typedef struct msi_given {
  uint32_t dims[MPISERVE_MAX_FREE];
  int64_t shapes[MPISERVE_MAX_TENSORS][MPISERVE_MAX_DIMS];
  int position[MPISERVE_MAX_TENSORS]; /* of the tensors, in the call */
} msi_given;

/* Has the tensor a dimension of rows? */
static inline int msi_spec_has_rows(const mpiserve_spec *spec) {
  return spec->ndim > 0 && spec->shape[0] == -1 && spec->max_shape[0] <= 0;
}

/* Is dimension d of the tensor free? */
static inline int msi_spec_is_free(const mpiserve_spec *spec, int d) {
  return spec->shape[d] == -1 && spec->max_shape[d] > 0;
}

/* Checks the specs (names, dtypes, shapes) and fills side, which keeps specs. All have rows, or
 * none has. */
int msi_side_init(msi_side *side, const char *what, int n, const mpiserve_spec *specs);

/* Checks the tensors of a call and puts their addresses into data in the order
 * of the signature. *rows is MSI_ANY_ROWS before the first side, and the
 * common number of rows after it. */
#define MSI_ANY_ROWS INT64_MIN
int msi_side_match(const msi_side *side, const char *service, int n, const mpiserve_tensor *tensors,
                   int64_t *rows, void **data);

/* Are free dimensions, as numbers in the order of the signature, within its bounds? */
int msi_side_has_dims(const msi_side *side, const uint32_t *dims);

/* The same side, with the bytes of rows of these dimensions. */
void msi_side_of_dims(const msi_side *side, const uint32_t *dims, msi_side *actual);

/* Where tensors of so many rows lie in memory, one after the other, each from a line of caches on,
 * the first at byte at, a multiple of MSI_ALIGN: into data, unless memory is NULL. Returns the byte
 * after them. */
size_t msi_side_place(const msi_side *side, int64_t rows, size_t at, uint8_t *memory, void **data);

/* From shapes of all tensors to their free dimensions; whether these fit. Back, with rows. */
int msi_side_dims(const msi_side *side, const int64_t *shapes, uint32_t *dims);
void msi_side_shapes(const msi_side *side, int64_t rows, const uint32_t *dims, int64_t *shapes);

/* Do two sides have equal names, dtypes, shapes and checks? */
int msi_side_equal(const msi_side *a, const msi_side *b);

#endif
