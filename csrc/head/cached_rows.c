#include "head/cached_rows.h"

#include <string.h>

#include "head/fit.h"

void msi_cached_count(msi_cached *cached, uint32_t rows, uint32_t kept) {
  msi_broker *broker = cached->broker;
  broker->counters.cache_lookups += rows;
  broker->counters.cache_hits += kept;
  if (!broker->part) return;
  broker->part->lookups += rows;
  broker->part->hits += kept;
}

/* ---- which rows --------------------------------------------------------------------------- */

static uint64_t *bits_of(const msi_assembly *assembly, const msi_entry *entry) {
  const msi_cached *cached = assembly->cached;
  size_t slot = entry->lane * (size_t)MSI_SLOTS + (entry->sequence - 1) % MSI_SLOTS;
  return cached->kept[entry->inbox] + slot * cached->words;
}

static int is_kept(const uint64_t *bits, uint32_t row) {
  return bits[row / MSI_KEPT_BITS] >> row % MSI_KEPT_BITS & 1;
}

uint32_t msi_cached_rows(const msi_assembly *assembly, const msi_entry *entry) {
  uint32_t rows = entry->rows;
  if (!entry->partly) return rows;
  const uint64_t *bits = bits_of(assembly, entry);
  for (size_t i = 0; i < assembly->cached->words; i++)
    rows += (uint32_t)__builtin_popcountll(bits[i]);
  return rows;
}

uint32_t msi_cached_next(const msi_assembly *assembly, const msi_entry *entry, uint32_t *begin) {
  uint32_t rows = msi_cached_rows(assembly, entry), end;
  const uint64_t *bits = bits_of(assembly, entry);
  while (entry->partly && *begin < rows && is_kept(bits, *begin)) ++*begin;
  for (end = *begin; end < rows && !(entry->partly && is_kept(bits, end));) end++;
  return end - *begin;
}

static void copy_row(const msi_assembly *assembly, const void *const *inputs, uint32_t row,
                     uint32_t to) {
  const msi_side *side = &assembly->inboxes[0].layout.inputs;
  for (int i = 0; i < side->n; i++) {
    size_t bytes = side->row_bytes[i];
    memcpy((uint8_t *)assembly->batch.inputs[i] + to * bytes,
           (const uint8_t *)inputs[i] + row * bytes, bytes);
  }
}

/* Gathers a row into the batch and looks it up there: its entry. */
static uint32_t gather_row(msi_assembly *assembly, const void *const *inputs, uint32_t row,
                           uint32_t at) {
  msi_cached *cached = assembly->cached;
  uint8_t *key = cached->keys + at * cached->cache.key_bytes;
  copy_row(assembly, inputs, row, at);
  if (cached->is_off) return MSI_NO_ENTRY;
  cached->hashes[at] = msi_cache_key(&cached->cache, assembly->batch.inputs, at, key);
  return msi_cache_find(&cached->cache, key, cached->hashes[at]);
}

/* Gathers what is not kept; the answers that are kept go to where the client looks for them. It
 * does not know yet. Over rma the reply before may still be on its way from there: without a begin
 * of the next one all rows go to the model. So does the last one of a client that writes to rows
 * which were not kept, until all are: no request is in a batch without a row. Returns where the
 * next member begins. */
static uint32_t gather_member(msi_assembly *assembly, msi_entry *m, uint32_t at) {
  msi_inbox *inbox = &assembly->inboxes[m->inbox];
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  uint64_t *bits = bits_of(assembly, m);
  msi_slot *slot;
  int has_begun = !msi_inbox_reply_begin(inbox, m->lane, m->sequence, &slot);
  msi_fit_find(inbox, m, slot, inputs, outputs);
  memset(bits, 0, assembly->cached->words * sizeof *bits);
  m->at = at;
  for (uint32_t row = 0; row < m->rows; row++) {
    uint32_t entry = gather_row(assembly, inputs, row, at);
    int is_last = row + 1 == m->rows && at == m->at;
    if (entry == MSI_NO_ENTRY || !has_begun || is_last) {
      at++;
      continue;
    }
    msi_cache_answer(&assembly->cached->cache, entry, outputs, row);
    bits[row / MSI_KEPT_BITS] |= UINT64_C(1) << row % MSI_KEPT_BITS;
  }
  m->partly = at - m->at < m->rows;
  m->keeps = !assembly->cached->is_off;
  m->rows = at - m->at;
  return at;
}

void msi_cached_lay_out(msi_assembly *assembly) {
  const msi_layout *layout = &assembly->inboxes[0].layout;
  mpiserve_batch *batch = &assembly->batch;
  uint32_t at = 0;
  for (int i = 0; i < layout->inputs.n; i++)
    batch->inputs[i] = assembly->memory + assembly->inputs_at[i];
  for (int i = 0; i < layout->outputs.n; i++)
    batch->outputs[i] = assembly->memory + assembly->outputs_at[i];
  batch->in_place = 0;
  for (uint32_t i = 0; i < assembly->n; i++)
    at = gather_member(assembly, &assembly->members[i], at);
  batch->rows = at;
}

/* ---- results ---------------------------------------------------------------------------- */

static void keep(msi_assembly *assembly, const msi_entry *m, const void *const *outputs) {
  msi_cached *cached = assembly->cached;
  for (uint32_t at = m->at; at < m->at + m->rows; at++)
    msi_cache_keep(&cached->cache, cached->keys + at * cached->cache.key_bytes, cached->hashes[at],
                   outputs, at);
  cached->has_news = 1;
}

static void copy_rows(const msi_side *side, void *const *to, uint32_t begin,
                      const void *const *from, uint32_t at, uint32_t rows) {
  for (int i = 0; i < side->n; i++) {
    size_t bytes = side->row_bytes[i];
    memcpy((uint8_t *)to[i] + begin * bytes, (const uint8_t *)from[i] + at * bytes, rows * bytes);
  }
}

size_t msi_cached_scatter(msi_assembly *assembly, const msi_entry *m, msi_slot *slot,
                          const void *const *outputs) {
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *to[MPISERVE_MAX_TENSORS];
  msi_entry whole = *m;
  whole.rows = msi_cached_rows(assembly, m);
  size_t bytes = msi_fit_find(&assembly->inboxes[m->inbox], &whole, slot, inputs, to);
  uint32_t at = m->at, rows;
  for (uint32_t row = 0; (rows = msi_cached_next(assembly, m, &row)) > 0; row += rows, at += rows)
    copy_rows(&assembly->inboxes[m->inbox].layout.outputs, to, row, outputs, at, rows);
  if (m->keeps) keep(assembly, m, outputs);
  if (!assembly->cached->is_off)
    msi_cached_count(assembly->cached, whole.rows, whole.rows - m->rows);
  assembly->cached->broker->counters.rows += whole.rows - m->rows;
  return bytes;
}
