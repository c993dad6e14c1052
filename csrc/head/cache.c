#include "head/cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "protocol/value.h"

/* ---- open and close --------------------------------------------------------------------- */

static int is_rounded(const msi_cache *cache, int dtype) {
  return cache->step > 0 && dtype >= MPISERVE_FLOAT16 && dtype != MPISERVE_UINT16 &&
         dtype != MPISERVE_UINT32 && dtype != MPISERVE_UINT64;
}

static size_t key_bytes_of(const msi_cache *cache, int i) {
  const msi_side *side = cache->inputs;
  int dtype = side->specs[i].dtype;
  if (!is_rounded(cache, dtype)) return side->row_bytes[i];
  return side->row_bytes[i] / mpiserve_dtype_size(msi_dtype_part(dtype)) * sizeof(int64_t);
}

static uint32_t chains_for(uint32_t rows) {
  uint32_t n = 64;
  while (n < rows && n < UINT32_C(1) << 31) n *= 2;
  return n;
}

int msi_cache_open(msi_cache *cache, uint32_t rows, double step, const msi_side *inputs,
                   const msi_side *outputs) {
  uint32_t chains = chains_for(rows);
  *cache = (msi_cache){
      .inputs = inputs, .outputs = outputs, .step = step, .capacity = rows, .mask = chains - 1};
  for (int i = 0; i < inputs->n; i++) cache->key_bytes += key_bytes_of(cache, i);
  cache->row_bytes = cache->key_bytes + outputs->total_row_bytes;
  if (cache->row_bytes <= MSI_MOST_BYTES / rows) cache->rows = calloc(rows, cache->row_bytes);
  cache->entries = calloc(rows, sizeof *cache->entries);
  cache->chains = malloc(chains * sizeof *cache->chains);
  if (!cache->rows || !cache->entries || !cache->chains) {
    msi_cache_close(cache);
    return msi_error(MPISERVE_ENOMEM, "no memory for %u rows of %zu bytes that are kept", rows,
                     cache->row_bytes);
  }
  memset(cache->chains, 0xff, chains * sizeof *cache->chains);
  return MPISERVE_OK;
}

void msi_cache_close(msi_cache *cache) {
  free(cache->rows);
  free(cache->entries);
  free(cache->chains);
  cache->rows = NULL;
  cache->entries = NULL;
  cache->chains = NULL;
}

void msi_cache_forget(msi_cache *cache) {
  if (cache->n) memset(cache->chains, 0xff, (cache->mask + (size_t)1) * sizeof *cache->chains);
  cache->n = cache->hand = 0;
}

/* ---- keys ------------------------------------------------------------------------------- */

/* What is too large to be counted in steps stays itself: its bits are no such count, since of all
 * normal numbers the exponent is beyond 2^52, or the sign below -2^62. */
static int64_t in_steps(double value, double step) {
  static const uint64_t A_NAN = UINT64_C(0x7ff8000000000000);
  int64_t bits;
  double steps = value / step;
  if (steps < 0x1p52 && steps > -0x1p52) {
    int64_t whole = (int64_t)steps;
    double rest = steps - (double)whole; /* exact */
    return whole + (rest >= 0.5) - (rest <= -0.5);
  }
  if (value != value) return (int64_t)A_NAN;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* Rows in slots may be less aligned than their type. */
static uint8_t *write_in_steps(const msi_cache *cache, int dtype, const uint8_t *from, size_t bytes,
                               uint8_t *key) {
  int part = msi_dtype_part(dtype);
  size_t size = mpiserve_dtype_size(part);
  for (size_t at = 0; at < bytes; at += size, key += sizeof(int64_t)) {
    double aligned;
    memcpy(&aligned, from + at, size);
    int64_t steps = in_steps(msi_value_at(part, &aligned, 0), cache->step);
    memcpy(key, &steps, sizeof steps);
  }
  return key;
}

static uint64_t hash_of(const uint8_t *key, size_t bytes) {
  uint64_t hash = bytes, word;
  for (; bytes >= sizeof word; bytes -= sizeof word, key += sizeof word) {
    memcpy(&word, key, sizeof word);
    hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    hash ^= hash >> 32;
  }
  word = 0;
  memcpy(&word, key, bytes);
  hash = (hash ^ word) * UINT64_C(0x94d049bb133111eb);
  return hash ^ hash >> 29;
}

uint64_t msi_cache_key(const msi_cache *cache, const void *const *inputs, size_t row,
                       uint8_t *key) {
  const msi_side *side = cache->inputs;
  uint8_t *to = key;
  for (int i = 0; i < side->n; i++) {
    int dtype = side->specs[i].dtype;
    size_t bytes = side->row_bytes[i];
    const uint8_t *from = (const uint8_t *)inputs[i] + row * bytes;
    if (is_rounded(cache, dtype)) {
      to = write_in_steps(cache, dtype, from, bytes, to);
    } else {
      memcpy(to, from, bytes);
      to += bytes;
    }
  }
  return hash_of(key, cache->key_bytes);
}

/* ---- rows ------------------------------------------------------------------------------- */

static uint8_t *row_at(const msi_cache *cache, uint32_t entry) {
  return cache->rows + entry * cache->row_bytes;
}

static uint32_t *chain_of(const msi_cache *cache, uint64_t hash) {
  return &cache->chains[hash & cache->mask];
}

static uint32_t look_up(const msi_cache *cache, const uint8_t *key, uint64_t hash) {
  uint32_t e = *chain_of(cache, hash);
  while (e != MSI_NO_ENTRY &&
         (cache->entries[e].hash != hash || memcmp(row_at(cache, e), key, cache->key_bytes) != 0))
    e = cache->entries[e].next;
  return e;
}

uint32_t msi_cache_find(msi_cache *cache, const uint8_t *key, uint64_t hash) {
  uint32_t e = look_up(cache, key, hash);
  if (e != MSI_NO_ENTRY) cache->entries[e].wanted = 1;
  return e;
}

void msi_cache_answer(const msi_cache *cache, uint32_t entry, void *const *outputs, size_t row) {
  const msi_side *side = cache->outputs;
  const uint8_t *from = row_at(cache, entry) + cache->key_bytes;
  for (int i = 0; i < side->n; from += side->row_bytes[i++])
    memcpy((uint8_t *)outputs[i] + row * side->row_bytes[i], from, side->row_bytes[i]);
}

static void unlink_entry(msi_cache *cache, uint32_t entry) {
  uint32_t *link = chain_of(cache, cache->entries[entry].hash);
  while (*link != entry) link = &cache->entries[*link].next;
  *link = cache->entries[entry].next;
}

/* The hand stops within two rounds. */
static uint32_t take_place(msi_cache *cache) {
  if (cache->n < cache->capacity) return cache->n++;
  for (;;) {
    uint32_t entry = cache->hand;
    cache->hand = entry + 1 < cache->capacity ? entry + 1 : 0;
    if (!cache->entries[entry].wanted) {
      unlink_entry(cache, entry);
      return entry;
    }
    cache->entries[entry].wanted = 0;
  }
}

void msi_cache_keep(msi_cache *cache, const uint8_t *key, uint64_t hash, const void *const *outputs,
                    size_t row) {
  const msi_side *side = cache->outputs;
  if (look_up(cache, key, hash) != MSI_NO_ENTRY) return;
  uint32_t entry = take_place(cache), *chain = chain_of(cache, hash);
  uint8_t *to = row_at(cache, entry);
  memcpy(to, key, cache->key_bytes);
  to += cache->key_bytes;
  for (int i = 0; i < side->n; to += side->row_bytes[i++])
    memcpy(to, (const uint8_t *)outputs[i] + row * side->row_bytes[i], side->row_bytes[i]);
  cache->entries[entry] = (msi_cache_entry){.hash = hash, .next = *chain};
  *chain = entry;
}
