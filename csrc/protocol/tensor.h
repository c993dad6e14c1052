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
  size_t row_bytes[MPISERVE_MAX_TENSORS];
  size_t total_row_bytes; /* of all tensors of this side */
  size_t slot_bytes;      /* the most bytes of a request that lie in its slot */
  int n_with_rows;        /* n; -1: the tensors have no rows, and one tensor is one row */
  int64_t least_rows;     /* of a call */
} msi_side;

/* Has the tensor a dimension of rows? */
static inline int msi_spec_has_rows(const mpiserve_spec *spec) {
  return spec->ndim > 0 && spec->shape[0] == -1;
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

/* Do two sides have equal names, dtypes, shapes and checks? */
int msi_side_equal(const msi_side *a, const msi_side *b);

#endif
