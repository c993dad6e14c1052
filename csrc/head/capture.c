#include "head/capture.h"

#include <poll.h>
#include <string.h>

#include "base/error.h"
#include "head/cached_rows.h"
#include "head/fit.h"

enum { PIECE_BYTES = 1 << 20 }; /* of a record: large requests are cut, so that they find room */

/* Without progress of the reader for so long, nobody waits for it any more. */
static const int64_t STUCK_NS = 10000000000;

/* ---- settings ---------------------------------------------------------------------------- */

static int check(const mpiserve_capture *c, const msi_broker *broker) {
  const msi_layout *layout = &broker->inboxes[0].layout;
  if (msi_layout_is_free(layout))
    return msi_error(MPISERVE_EARG, "service '%s' has free dimensions, which are not captured",
                     broker->description->name);
  size_t row = layout->inputs.total_row_bytes + layout->outputs.total_row_bytes;
  size_t least = sizeof(msi_ring_shared) + 4 * msi_ring_size_of(row);
  if (c->memory && c->bytes >= 0 && (size_t)c->bytes >= least) return MPISERVE_OK;
  return msi_error(MPISERVE_EARG, "a ring of %lld bytes for rows of %zu bytes of service '%s'",
                   (long long)c->bytes, row, broker->description->name);
}

/* The flag of profiles is the one branch of a request for both. */
static void turn(msi_broker *broker, int on) {
  msi_profile_on += on - broker->capture.on;
  broker->capture.on = on;
}

void msi_capture_close(msi_serving *serving) {
  for (int i = 0; i < serving->n; i++) turn(&serving->brokers[i], 0);
}

static void begin(msi_serving *serving, msi_broker *broker, const mpiserve_capture *wanted) {
  if (serving->ring.shared != wanted->memory)
    msi_ring_open(&serving->ring, wanted->memory, (size_t)wanted->bytes);
  broker->capture.ring = &serving->ring;
  broker->capture.wanted = *wanted;
  turn(broker, 1);
}

int msi_capture_set(msi_serving *serving, int service, const mpiserve_capture *wanted) {
  if (service < 0 || service >= serving->n)
    return msi_error(MPISERVE_EARG, "service %d of %d", service, serving->n);
  msi_broker *broker = &serving->brokers[service];
  int code = wanted ? check(wanted, broker) : MPISERVE_OK;
  msi_progress_stop(&serving->progress); /* its thread takes what clients record */
  turn(broker, 0);
  if (!code && wanted) begin(serving, broker, wanted);
  msi_progress_start(&serving->progress);
  return code;
}

/* ---- which ------------------------------------------------------------------------------- */

/* The same requests in every run with this seed, whatever their timing. SplitMix64. */
static uint64_t draw(uint64_t seed, uint64_t rank, uint64_t sequence) {
  uint64_t z = seed + (rank << 40 ^ sequence) * UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

static int is_wanted(const msi_broker *broker, const msi_record *r) {
  const mpiserve_capture *c = &broker->capture.wanted;
  if (c->every_steps > 1 && r->step % c->every_steps) return 0;
  if (c->every_batches > 1 && broker->counters.batches % c->every_batches) return 0;
  if (c->share >= 1) return 1;
  uint64_t drawn = draw(c->seed, (uint64_t)r->rank, r->sequence);
  return (double)(drawn >> 11) * 0x1p-53 < c->share;
}

/* ---- the copy ---------------------------------------------------------------------------- */

static int is_dead(int pidfd) {
  struct pollfd end = {pidfd, POLLIN, 0};
  return pidfd >= 0 && poll(&end, 1, 0) > 0;
}

/* The flag of profiles stays: if replies might change it, they would read it again and again. */
static msi_record *give_up(msi_broker *broker) {
  atomic_store_explicit(&broker->capture.ring->shared->given_up, 1, memory_order_relaxed);
  return NULL;
}

/* Waits for room, until the reader has closed, died, or made no progress for long. */
static msi_record *wait_for_room(msi_broker *broker, uint64_t bytes) {
  msi_ring *ring = broker->capture.ring;
  msi_backoff backoff = broker->world->backoff;
  msi_wait wait = {0};
  msi_record *record = NULL;
  uint64_t before = atomic_load_explicit(&ring->shared->read, memory_order_relaxed);
  int64_t since = msi_now();
  while (!record && !msi_ring_is_closed(ring) && !is_dead(broker->capture.wanted.reader)) {
    msi_wait_pause(&wait, &backoff, NULL);
    record = msi_ring_reserve(ring, bytes);
    uint64_t read = atomic_load_explicit(&ring->shared->read, memory_order_relaxed);
    int64_t now = msi_now();
    if (read != before) since = now;
    before = read;
    if (now - since > STUCK_NS) return give_up(broker);
  }
  return record;
}

static uint8_t *copy(uint8_t *to, const msi_side *side, const void *const *from, uint32_t begin,
                     uint32_t rows) {
  for (int i = 0; i < side->n; i++) {
    size_t row = side->row_bytes[i];
    memcpy(to, (const uint8_t *)from[i] + begin * row, rows * row);
    to += rows * row;
  }
  return to;
}

/* Some rows of a request; `of` says all but their number and place. */
static void put(msi_broker *broker, const msi_record *of, const void *const *inputs,
                const void *const *outputs, uint32_t begin, uint32_t rows) {
  msi_capture *capture = &broker->capture;
  const msi_layout *layout = &broker->inboxes[0].layout;
  size_t row = layout->inputs.total_row_bytes + layout->outputs.total_row_bytes;
  uint64_t bytes = msi_ring_size_of(rows * (uint64_t)row);
  msi_record *record = msi_ring_reserve(capture->ring, bytes);
  if (!record && capture->wanted.waits) record = wait_for_room(broker, bytes);
  if (!record) {
    msi_ring_drop(capture->ring, rows);
    return;
  }
  *record = *of;
  record->bytes = bytes;
  record->at += begin;
  record->rows = rows;
  uint8_t *to = copy((uint8_t *)(record + 1), &layout->inputs, inputs, begin, rows);
  copy(to, &layout->outputs, outputs, begin, rows);
  msi_ring_commit(capture->ring, record);
}

/* The rows from begin to end of a request, in pieces. */
static void put_rows(msi_broker *broker, const msi_record *of, uint32_t begin, uint32_t end,
                     const void *const *inputs, const void *const *outputs) {
  const msi_layout *layout = &broker->inboxes[0].layout;
  size_t row = layout->inputs.total_row_bytes + layout->outputs.total_row_bytes;
  uint32_t most = row && row < PIECE_BYTES ? (uint32_t)(PIECE_BYTES / row) : 1;
  for (uint32_t left; (left = end - begin) > 0; begin += most) {
    put(broker, of, inputs, outputs, begin, left < most ? left : most);
    if (left <= most) break;
  }
}

/* Is a row trusted, by the last of its outputs? A NaN is above any limit. */
static int is_trusted(const msi_side *outputs, const void *uncertainty, uint32_t row) {
  float value;
  memcpy(&value, (const uint8_t *)uncertainty + row * sizeof value, sizeof value);
  return (double)value <= outputs->specs[outputs->n - 1].max;
}

/* The rows of a request that are not trusted: neighbours go together. */
static void put_untrusted(msi_broker *broker, const msi_record *of, uint32_t rows,
                          const void *const *inputs, const void *const *outputs) {
  const msi_side *side = &broker->inboxes[0].layout.outputs;
  if (!side->n_hidden) return;
  const void *uncertainty = outputs[side->n - 1];
  for (uint32_t begin = 0, end; begin < rows; begin = end + 1) {
    while (begin < rows && is_trusted(side, uncertainty, begin)) begin++;
    end = begin;
    while (end < rows && !is_trusted(side, uncertainty, end)) end++;
    put_rows(broker, of, begin, end, inputs, outputs);
  }
}

static void put_answers(msi_broker *broker, const msi_record *of, uint32_t rows,
                        const void *const *inputs, const void *const *outputs) {
  if (broker->capture.wanted.untrusted)
    put_untrusted(broker, of, rows, inputs, outputs);
  else
    put_rows(broker, of, 0, rows, inputs, outputs);
}

static msi_record describe(const msi_broker *broker, const msi_entry *entry,
                           const msi_origin *origin, const msi_slot *slot) {
  msi_record r = {.at = entry->at,
                  .rank = broker->inboxes[entry->inbox].clients[entry->lane],
                  .service = (uint16_t)broker->assembly.batch.service,
                  .generation = broker->changes.generation,
                  .model = (uint32_t)broker->capture.wanted.model,
                  .batch_rows = origin->rows,
                  .batch_requests = origin->requests,
                  .sequence = entry->sequence,
                  .batch = origin->closed_ns,
                  .time_ns = msi_now()};
  memcpy(&r.step, slot->input + MSI_STEP_AT, sizeof r.step);
  return r;
}

/* Of a request some of whose rows were kept, those that the model has answered. */
static void put_answered(msi_broker *broker, const msi_entry *entry, const msi_record *of,
                         msi_slot *slot) {
  const msi_inbox *inbox = &broker->inboxes[entry->inbox];
  const msi_side *in = &inbox->layout.inputs, *out = &inbox->layout.outputs;
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  msi_entry whole = *entry;
  msi_record part = *of;
  whole.rows = msi_cached_rows(&broker->assembly, entry);
  uint32_t rows;
  for (uint32_t row = 0; (rows = msi_cached_next(&broker->assembly, entry, &row)) > 0;
       row += rows, part.at += rows) {
    msi_fit_find(inbox, &whole, slot, inputs, outputs);
    for (int i = 0; i < in->n; i++) inputs[i] = (const uint8_t *)inputs[i] + row * in->row_bytes[i];
    for (int i = 0; i < out->n; i++) outputs[i] = (uint8_t *)outputs[i] + row * out->row_bytes[i];
    put_answers(broker, &part, rows, inputs, (const void *const *)outputs);
  }
}

/* What a cache has answered is not copied: its origin is no batch. Not inlined: a reply without a
 * capture would save registers for it. */
__attribute__((noinline)) void msi_capture_reply(msi_broker *broker, const msi_entry *entry,
                                                 const msi_origin *origin, msi_slot *slot) {
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  if (msi_ring_is_over(broker->capture.ring) || !origin->requests) return;
  msi_record of = describe(broker, entry, origin, slot);
  if (!is_wanted(broker, &of)) return;
  if (entry->partly) {
    put_answered(broker, entry, &of, slot);
    return;
  }
  msi_fit_find(&broker->inboxes[entry->inbox], entry, slot, inputs, outputs);
  put_answers(broker, &of, entry->rows, inputs, (const void *const *)outputs);
}

/* ---- what clients record ------------------------------------------------------------------ */

/* Where the sides of a record lie: one after the other in the slot (leases are -1), or in leased
 * rows. */
typedef struct msi_record_place {
  int lease, output_lease;
  uint32_t row, output_row;
} msi_record_place;

/* Each word is read once, though it was before: to hand the header on costs all others. */
static msi_record_place read_pair(const msi_inbox *inbox, const msi_entry *entry) {
  const volatile msi_request_header *from =
      &msi_inbox_slot(inbox, entry->lane, entry->sequence)->request;
  return (msi_record_place){.lease = from->lease,
                            .output_lease = from->output_lease,
                            .row = from->row,
                            .output_row = from->output_row};
}

static int lies_in_slot(const msi_layout *layout, const msi_entry *entry,
                        const msi_record_place *pair) {
  size_t row = layout->inputs.total_row_bytes + layout->outputs.total_row_bytes;
  return pair->lease < 0 && pair->output_lease < 0 &&
         entry->rows * row <= layout->inputs.slot_bytes;
}

/* Nothing in the header is trusted. */
static int lies_in_lease(const msi_inbox *inbox, const msi_entry *entry, int lease, uint32_t row) {
  if (lease < 0 || lease >= MSI_LEASES) return 0;
  uint32_t leased = inbox->lanes[entry->lane].leases[lease].rows;
  return row <= leased && entry->rows <= leased - row;
}

static int fits(const msi_inbox *inbox, const msi_entry *entry, const msi_record_place *pair) {
  if (msi_layout_is_free(&inbox->layout)) return 0;
  if (entry->rows < 1 || entry->rows > inbox->layout.max_rows) return 0;
  return lies_in_slot(&inbox->layout, entry, pair) ||
         (lies_in_lease(inbox, entry, pair->lease, pair->row) &&
          lies_in_lease(inbox, entry, pair->output_lease, pair->output_row));
}

static void find(const msi_inbox *inbox, const msi_entry *entry, const msi_record_place *pair,
                 const void **inputs, const void **outputs) {
  const msi_side *in = &inbox->layout.inputs, *out = &inbox->layout.outputs;
  const msi_range *leases = inbox->lanes[entry->lane].leases;
  const uint8_t *packed = msi_inbox_slot(inbox, entry->lane, entry->sequence)->input;
  int is_leased = pair->lease >= 0;
  for (int i = 0; i < in->n; packed += entry->rows * in->row_bytes[i++])
    inputs[i] =
        is_leased ? msi_inbox_input(inbox, i, leases[pair->lease].begin + pair->row) : packed;
  for (int i = 0; i < out->n; packed += entry->rows * out->row_bytes[i++])
    outputs[i] =
        is_leased ? msi_inbox_output(inbox, i, leases[pair->output_lease].begin + pair->output_row)
                  : packed;
}

static void keep(msi_broker *broker, const msi_entry *entry, const msi_record_place *pair) {
  const void *inputs[MPISERVE_MAX_TENSORS], *outputs[MPISERVE_MAX_TENSORS];
  const msi_inbox *inbox = &broker->inboxes[entry->inbox];
  msi_record of = {.rank = inbox->clients[entry->lane],
                   .service = (uint16_t)broker->assembly.batch.service,
                   .source = MSI_OF_PHYSICS,
                   .sequence = entry->sequence,
                   .time_ns = msi_now()};
  const msi_slot *slot = msi_inbox_slot(inbox, entry->lane, entry->sequence);
  memcpy(&of.step, slot->input + MSI_STEP_AT, sizeof of.step);
  find(inbox, entry, pair, inputs, outputs);
  put_rows(broker, &of, 0, entry->rows, inputs, outputs);
  broker->capture.records++;
}

int msi_capture_take(msi_broker *broker, const msi_entry *entry) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  const msi_record_place pair = read_pair(inbox, entry);
  msi_slot *slot;
  if (!fits(inbox, entry, &pair))
    return msi_broker_refuse(broker, entry, MPISERVE_EROWS,
                             "a record whose rows lie outside of the slot and the leases");
  int is_kept = broker->capture.on && !msi_ring_is_over(broker->capture.ring);
  if (is_kept) keep(broker, entry, &pair);
  int code = msi_inbox_reply_begin(inbox, entry->lane, entry->sequence, &slot);
  if (code) return code;
  slot->reply.rows = is_kept ? entry->rows : 0;
  return msi_inbox_reply_end(inbox, entry->lane, entry->sequence, 0);
}
