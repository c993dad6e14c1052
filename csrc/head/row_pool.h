/* row_pool: which rows of the slabs belong to whom. The unit is a row of every
 * input and output slab at once. First fit, so that clients who ask for rows
 * one after the other become neighbours, and their batch is one range that the
 * model can read in place. No MPI calls; used by one thread at a time. */
#ifndef MSI_ROW_POOL_H
#define MSI_ROW_POOL_H

#include <stdint.h>

typedef struct msi_range {
  uint32_t begin, rows;
} msi_range;

typedef struct msi_row_pool {
  uint32_t rows, used;
  uint32_t taken; /* ranges taken */
  uint32_t n, capacity;
  msi_range *free; /* n free ranges, sorted, never touching each other */
} msi_row_pool;

int msi_row_pool_open(msi_row_pool *pool, uint32_t rows);
void msi_row_pool_close(msi_row_pool *pool);

/* Takes rows; false if no free range is large enough. */
int msi_row_pool_take(msi_row_pool *pool, uint32_t rows, msi_range *range);

/* Gives back a range that was taken; rows 0 is nothing. The pool's list was
 * grown while taking, so that this never fails. */
void msi_row_pool_give(msi_row_pool *pool, msi_range range);

#endif
