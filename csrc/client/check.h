/* check: are the values of a result such as the signature promises? No MPI calls. */
#ifndef MSI_CHECK_H
#define MSI_CHECK_H

#include <stddef.h>

#include "protocol/tensor.h"

/* Does the signature promise anything of these tensors? */
int msi_check_wanted(const msi_side *outputs);

/* Do all rows keep what it promises? */
int msi_check_passes(const msi_side *outputs, int64_t rows, void *const *data);

/* The shapes of the tensors, where the signature leaves some of them open. */
typedef int64_t msi_check_shapes[MPISERVE_MAX_TENSORS][MPISERVE_MAX_DIMS];

/* The rows of a result that are no answers to rely on, ascending. */
typedef struct msi_doubts {
  int64_t *rows;  /* has room for all */
  int64_t n;      /* rows */
  int64_t failed; /* of these, rows whose values are not such as the signature promises */
  char text[320]; /* what is wrong with the first of these; else, with the first row: in which row,
                     or in which element of tensors without rows */
} msi_doubts;

/* Fills all but the address of rows. shapes NULL: the signature has those of the tensors. */
void msi_check_rows(const msi_side *outputs, int64_t rows, void *const *data,
                    const msi_check_shapes *shapes, msi_doubts *doubts);

#endif
