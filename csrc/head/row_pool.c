#include "head/row_pool.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

int msi_row_pool_open(msi_row_pool *pool, uint32_t rows) {
  *pool = (msi_row_pool){.rows = rows, .n = rows ? 1 : 0, .capacity = 16};
  pool->free = malloc(pool->capacity * sizeof *pool->free);
  if (!pool->free) return msi_error(MPISERVE_ENOMEM, "no memory for the list of free rows");
  pool->free[0] = (msi_range){0, rows};
  return MPISERVE_OK;
}

void msi_row_pool_close(msi_row_pool *pool) {
  free(pool->free);
  *pool = (msi_row_pool){0};
}

/* Between and around taken ranges lie at most taken + 1 free ones: with room for
 * those, a later give never needs memory. */
static int reserve(msi_row_pool *pool) {
  if (pool->taken + 2 < pool->capacity) return 1;
  msi_range *grown = realloc(pool->free, 2 * pool->capacity * sizeof *grown);
  if (!grown) return 0;
  pool->free = grown;
  pool->capacity *= 2;
  return 1;
}

static void drop(msi_row_pool *pool, uint32_t at) {
  pool->n--;
  memmove(&pool->free[at], &pool->free[at + 1], (pool->n - at) * sizeof *pool->free);
}

int msi_row_pool_take(msi_row_pool *pool, uint32_t rows, msi_range *range) {
  uint32_t at = 0;
  while (at < pool->n && pool->free[at].rows < rows) at++;
  if (at == pool->n || rows == 0 || !reserve(pool)) return 0;
  *range = (msi_range){pool->free[at].begin, rows};
  pool->free[at].begin += rows;
  pool->free[at].rows -= rows;
  if (!pool->free[at].rows) drop(pool, at);
  pool->used += rows;
  pool->taken++;
  return 1;
}

void msi_row_pool_give(msi_row_pool *pool, msi_range range) {
  if (!range.rows) return;
  uint32_t at = 0;
  while (at < pool->n && pool->free[at].begin < range.begin) at++;
  memmove(&pool->free[at + 1], &pool->free[at], (pool->n - at) * sizeof *pool->free);
  pool->free[at] = range;
  pool->n++;
  pool->taken--;
  pool->used -= range.rows;
  if (at + 1 < pool->n && range.begin + range.rows == pool->free[at + 1].begin) {
    pool->free[at].rows += pool->free[at + 1].rows;
    drop(pool, at + 1);
  }
  if (at && pool->free[at - 1].begin + pool->free[at - 1].rows == range.begin) {
    pool->free[at - 1].rows += pool->free[at].rows;
    drop(pool, at);
  }
}
