#include "head/cached.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "head/answer.h"
#include "head/fit.h"

/* ---- open and close --------------------------------------------------------------------- */

static const char *excluded(const mpiserve_description *d, const msi_layout *layout) {
  if (d->rows != MPISERVE_INDEPENDENT) return "rows that are not independent";
  if (d->reproducible) return "reproducible, as what is kept depends on time";
  if (layout->is_free) return "free dimensions";
  return d->overwrites ? "outputs that overwrite the inputs" : NULL;
}

int msi_cached_check(const mpiserve_description *d, const msi_layout *layout) {
  const char *what = d->cache_rows ? excluded(d, layout) : NULL;
  if (d->cache_rows < 0 || d->cache_rows > INT32_MAX ||
      !(d->cache_step == 0 || (d->cache_step >= DBL_MIN && d->cache_step <= DBL_MAX)))
    return msi_error(MPISERVE_ECONFIG, "service '%s': cache_rows or cache_step out of range",
                     d->name);
  if (d->cache_step != 0 && !d->cache_rows) what = "no cache_rows";
  if (!what) return MPISERVE_OK;
  return msi_error(MPISERVE_ECONFIG, "service '%s': %s, and %s", d->name,
                   d->cache_rows ? "cache_rows" : "cache_step", what);
}

static int allocate(msi_broker *broker, msi_cached *cached) {
  const msi_layout *layout = &broker->inboxes[0].layout;
  size_t rows = (size_t)layout->batch_rows, request = (size_t)layout->max_rows;
  cached->words = (request + MSI_KEPT_BITS - 1) / MSI_KEPT_BITS;
  cached->found = malloc(request * sizeof *cached->found);
  cached->keys = malloc(rows * cached->cache.key_bytes);
  cached->hashes = malloc(rows * sizeof *cached->hashes);
  int lacking = !cached->found || !cached->keys || !cached->hashes;
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    size_t slots = (size_t)broker->inboxes[t].layout.lanes * MSI_SLOTS;
    cached->kept[t] = calloc(slots ? slots * cached->words : 1, sizeof *cached->kept[t]);
    lacking |= !cached->kept[t];
  }
  return lacking ? msi_error(MPISERVE_ENOMEM, "no memory for a batch of %zu rows", rows)
                 : MPISERVE_OK;
}

/* Requests to the service take the way of those that fit in no plain way: others save the look. */
static void leave_the_plain_way(msi_broker *broker) {
  broker->policy.special = MSI_CACHED;
  broker->assembly.special = 1;
  for (int t = 0; t < MSI_TRANSPORTS; t++) broker->inboxes[t].layout.max_plain_rows = 0;
}

int msi_cached_open(msi_broker *broker) {
  const mpiserve_description *d = broker->description;
  const msi_layout *layout = &broker->inboxes[0].layout;
  if (!d->cache_rows || d->error) return MPISERVE_OK;
  msi_cached *cached = broker->assembly.cached = calloc(1, sizeof *cached);
  if (!cached) return msi_error(MPISERVE_ENOMEM, "no memory for the cache of '%s'", d->name);
  cached->broker = broker;
  int code = msi_cache_open(&cached->cache, (uint32_t)d->cache_rows, d->cache_step, &layout->inputs,
                            &layout->outputs);
  if (!code) code = allocate(broker, cached);
  if (!code) leave_the_plain_way(broker);
  return code;
}

void msi_cached_close(msi_broker *broker) {
  msi_cached *cached = broker->assembly.cached;
  if (!cached) return;
  msi_cache_close(&cached->cache);
  free(cached->found);
  free(cached->keys);
  free(cached->hashes);
  for (int t = 0; t < MSI_TRANSPORTS; t++) free(cached->kept[t]);
  free(cached);
  broker->assembly.cached = NULL;
}

void msi_cached_forget(msi_broker *broker) {
  msi_cached *cached = broker->assembly.cached;
  if (!cached) return;
  cached->is_off = broker->policy.together;
  msi_cache_forget(&cached->cache);
}

/* ---- requests ---------------------------------------------------------------------------- */

/* Are all rows kept? Then found has their entries. What a client writes meanwhile changes its own
 * answer alone. */
static int are_kept(msi_broker *broker, const msi_entry *entry, const void *const *inputs) {
  msi_cached *cached = broker->assembly.cached;
  for (uint32_t row = 0; row < entry->rows; row++) {
    uint64_t hash = msi_cache_key(&cached->cache, inputs, row, cached->keys);
    cached->found[row] = msi_cache_find(&cached->cache, cached->keys, hash);
    if (cached->found[row] == MSI_NO_ENTRY) return 0;
  }
  return 1;
}

/* Its client may ask again at once for what is kept: batches of others do not wait for that. */
static int answer(msi_broker *broker, const msi_entry *entry) {
  msi_cached *cached = broker->assembly.cached;
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  msi_lane *lane = &inbox->lanes[entry->lane];
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  msi_slot *slot;
  int code = msi_inbox_reply_begin(inbox, entry->lane, entry->sequence, &slot);
  if (code) return code;
  size_t bytes = msi_fit_find(inbox, entry, slot, inputs, outputs);
  for (uint32_t row = 0; row < entry->rows; row++)
    msi_cache_answer(&cached->cache, cached->found[row], outputs, row);
  if (!lane->queued) msi_census_uncount(&broker->census, lane);
  msi_cached_count(cached, entry->rows, entry->rows);
  broker->counters.cached_requests++;
  ++*cached->answered;
  int64_t now = msi_broker_now(broker);
  msi_origin origin = {.closed_ns = now};
  return msi_answer(broker, entry, &origin, slot, bytes, now);
}

/* One that its client has cancelled ends as it would without a cache. */
static int is_answerable(msi_broker *broker, const msi_entry *entry) {
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  if (broker->assembly.cached->is_off || !entry->rows) return 0;
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  msi_slot *slot = msi_inbox_slot(inbox, entry->lane, entry->sequence);
  if (msi_slot_cancelled(slot)) return 0;
  msi_fit_find(inbox, entry, slot, inputs, outputs);
  return are_kept(broker, entry, inputs);
}

int msi_cached_take(msi_broker *broker, const msi_entry *entry, int *code) {
  if (!is_answerable(broker, entry)) return 0;
  *code = answer(broker, entry);
  return 1;
}

int msi_cached_look(msi_broker *broker) {
  msi_cached *cached = broker->assembly.cached;
  int code = MPISERVE_OK;
  if (!cached->has_news) return code;
  cached->has_news = 0;
  for (uint32_t i = 0; i < broker->queue.n && !code;) {
    const msi_entry *e = msi_queue_at(&broker->queue, i);
    if (!is_answerable(broker, e)) {
      i++;
      continue;
    }
    msi_entry entry = msi_queue_remove(&broker->queue, i);
    msi_census_unqueue(&broker->census, &broker->inboxes[entry.inbox].lanes[entry.lane]);
    code = answer(broker, &entry);
  }
  return code;
}
