/* check: are the values of a result such as the signature promises? No MPI calls. */
#ifndef MSI_CHECK_H
#define MSI_CHECK_H

#include <stddef.h>

#include "protocol/tensor.h"

/* Does the signature promise anything of these tensors? */
int msi_check_wanted(const msi_side *outputs);

/* Do all rows keep what it promises? */
int msi_check_passes(const msi_side *outputs, int64_t rows, void *const *data);

/* The rows of a result that are no answers to rely on, ascending. */
typedef struct msi_doubts {
  int64_t *rows;  /* has room for all */
  int64_t n;      /* rows */
  int64_t failed; /* of these, rows whose values are not such as the signature promises */
  char text[256]; /* what is wrong with the first of these; else, with the first row */
} msi_doubts;

/* Fills all but the address of rows. */
void msi_check_rows(const msi_side *outputs, int64_t rows, void *const *data, msi_doubts *doubts);

#endif
