/* cache: rows of inputs with the answers to them. A row is looked up by a hash of its key, and its
 * whole key is compared, so no two rows are ever taken for one another. Its key is its bytes; with
 * a step, each of its floating numbers is the nearest multiple of the step (halves go away from 0,
 * -0 is 0, all NaN are one, infinities are themselves), and what is no floating number stays exact.
 *
 * It keeps as many rows as the description says. Then a new one takes the place of one that a hand
 * finds, which goes round and round: the first whose answer nobody has wanted since the hand passed
 * it. No MPI. Used by one thread at a time. */
#ifndef MSI_CACHE_H
#define MSI_CACHE_H

#include "protocol/tensor.h"

#define MSI_NO_ENTRY UINT32_MAX

typedef struct msi_cache_entry {
  uint64_t hash;
  uint32_t next;   /* in its chain */
  uint32_t wanted; /* since the hand passed it */
} msi_cache_entry;

typedef struct msi_cache {
  const msi_side *inputs, *outputs;
  double step; /* 0: exact */
  uint32_t capacity, n, hand;
  uint32_t mask;               /* of the hash, for the chain */
  size_t key_bytes, row_bytes; /* row: its key and its answer */
  uint32_t *chains;
  msi_cache_entry *entries;
  uint8_t *rows;
} msi_cache;

/* Makes room for so many rows of these sides, which must outlive it; memory that no row takes costs
 * nothing. MPISERVE_ENOMEM. */
int msi_cache_open(msi_cache *cache, uint32_t rows, double step, const msi_side *inputs,
                   const msi_side *outputs);
void msi_cache_close(msi_cache *cache);

/* Forgets all rows. */
void msi_cache_forget(msi_cache *cache);

/* Writes the key of a row of tensors, of key_bytes bytes; returns its hash. */
uint64_t msi_cache_key(const msi_cache *cache, const void *const *inputs, size_t row, uint8_t *key);

/* Finds the entry of a key whose answer is wanted; or MSI_NO_ENTRY. */
uint32_t msi_cache_find(msi_cache *cache, const uint8_t *key, uint64_t hash);

/* Copies its answer to a row of tensors; valid until a row is kept, or all are forgotten. */
void msi_cache_answer(const msi_cache *cache, uint32_t entry, void *const *outputs, size_t row);

/* Keeps a row of outputs as the answer to a key; the first one stays. */
void msi_cache_keep(msi_cache *cache, const uint8_t *key, uint64_t hash, const void *const *outputs,
                    size_t row);

#endif
