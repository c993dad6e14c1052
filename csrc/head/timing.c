#include "head/timing.h"

#include <stdio.h>
#include <string.h>

#include "base/regions.h"
#include "head/capture.h"

static const char REGION[] = "mpiserve batch";

void msi_timing_attach(msi_serving *serving, msi_profile *profile) {
  for (int i = 0; i < serving->n && profile->part; i++) {
    msi_broker *broker = &serving->brokers[i];
    const mpiserve_description *d = broker->description;
    broker->profile = profile;
    broker->part = &profile->heads[i];
    broker->late = profile->late + (size_t)i * (size_t)profile->part->size;
    *broker->part = (msi_head_part){.replica = d->replica,
                                    .max_batch_rows = d->max_batch_rows,
                                    .max_delay_ns = d->max_delay_ns,
                                    .max_queue_rows = d->max_queue_rows};
    snprintf(broker->part->name, sizeof broker->part->name, "%s", d->name);
    if (profile->trace.file)
      memcpy(profile->trace.names[i], broker->part->name, sizeof broker->part->name);
  }
}

/* ---- whom a batch has waited for ------------------------------------------------------- */

static void blame(msi_broker *broker, const msi_inbox *inbox, uint32_t lane, int64_t ns) {
  msi_late *late = &broker->late[inbox->clients[lane]];
  late->batches++;
  late->waited_ns += ns;
}

/* The one that came last, since the one before. Those that come at one look come together. */
static void blame_last(msi_broker *broker) {
  const msi_entry *last = NULL;
  int64_t before = 0;
  for (uint32_t i = 0; i < broker->assembly.n; i++) {
    const msi_entry *m = &broker->assembly.members[i];
    int is_last = !last || m->taken_ns > last->taken_ns;
    int64_t earlier = is_last && last ? last->taken_ns : is_last ? 0 : m->taken_ns;
    if (earlier > before) before = earlier;
    if (is_last) last = m;
  }
  int64_t from = before > broker->profile->free_ns ? before : broker->profile->free_ns;
  if (before && last->taken_ns > from)
    blame(broker, &broker->inboxes[last->inbox], last->lane, last->taken_ns - from);
}

/* Those that have not come, since the first one has. */
static void blame_missing(msi_broker *broker) {
  int64_t first = broker->assembly.members[0].taken_ns;
  if (first < broker->profile->free_ns) first = broker->profile->free_ns;
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    const msi_inbox *inbox = &broker->inboxes[t];
    for (uint32_t lane = 0; lane < inbox->layout.lanes; lane++)
      if (inbox->lanes[lane].active && inbox->lanes[lane].missed && broker->closed_ns > first)
        blame(broker, inbox, lane, broker->closed_ns - first);
  }
}

/* ---- events ---------------------------------------------------------------------------- */

/* NULL: nothing is traced. */
static const msi_trace *trace_of(const msi_broker *broker) {
  return broker->part && broker->profile->trace.file ? &broker->profile->trace : NULL;
}

static msi_event begin(const msi_broker *broker, msi_event_kind kind) {
  return (msi_event){.kind = (uint8_t)kind, .service = broker->assembly.batch.service, .peer = -1};
}

static void put(const msi_trace *trace, const msi_event *event) {
  *msi_trace_next(trace) = *event;
  msi_trace_put(trace);
}

void msi_timing_state(const msi_broker *broker, int state) {
  const msi_trace *trace = trace_of(broker);
  msi_event event = begin(broker, MSI_EVENT_STATE);
  event.flags = (uint8_t)state;
  event.times[0] = msi_now();
  if (trace) put(trace, &event);
}

void msi_timing_change(const msi_broker *broker, int code) {
  const msi_trace *trace = trace_of(broker);
  mpiserve_change_request change = {0}; /* gcc 11 does not see that an error leaves none */
  if (!trace || msi_change_queue_get(&broker->changes, &change)) return;
  msi_event event = begin(broker, MSI_EVENT_CHANGE);
  event.flags = (uint8_t)change.what;
  event.code = (int16_t)code;
  event.peer = change.client;
  event.begin_ns = msi_queue_at(&broker->changes.waiting, 0)->taken_ns;
  event.end_ns = msi_now();
  memcpy(event.text, change.version, sizeof change.version);
  put(trace, &event);
}

/* Who came first and last is known as long as the batch has its members. */
static void note_batch(msi_broker *broker, msi_close_reason reason) {
  msi_event event = begin(broker, MSI_EVENT_BATCH);
  event.flags = (uint8_t)reason;
  event.requests = broker->assembly.n;
  event.rows = (uint32_t)broker->assembly.batch.rows;
  for (uint32_t i = 0; i < broker->assembly.n; i++) {
    const msi_entry *m = &broker->assembly.members[i];
    if (!i || m->taken_ns < event.times[0]) event.times[0] = m->taken_ns;
    if (i && m->taken_ns <= event.times[1]) continue;
    event.times[1] = m->taken_ns;
    event.peer = broker->inboxes[m->inbox].clients[m->lane];
  }
  broker->event = event;
}

static void trace_batch(msi_broker *broker, const msi_trace *trace) {
  const msi_head_times *t = &broker->times;
  int64_t times[] = {t->free_ns,     t->closed_ns,  t->gathered_ns,
                     t->computed_ns, t->replied_ns, broker->profile->free_ns};
  memcpy(&broker->event.times[2], times, sizeof times);
  put(trace, &broker->event);
}

/* ---- batches --------------------------------------------------------------------------- */

void msi_timing_closed(msi_broker *broker, msi_close_reason reason) {
  msi_head_part *part = broker->part;
  if (!part) return;
  int in_place = broker->engine.by_request || broker->assembly.batch.in_place;
  broker->times = (msi_head_times){.free_ns = broker->profile->free_ns,
                                   .closed_ns = broker->closed_ns,
                                   .gathered_ns = in_place ? broker->closed_ns : msi_now()};
  part->batches++;
  part->requests += broker->assembly.n;
  part->rows += broker->assembly.batch.rows;
  part->in_place += in_place;
  part->closed[reason]++;
  if (trace_of(broker)) note_batch(broker, reason);
  msi_region_begin(REGION);
  if (reason == MSI_CLOSED_DELAY)
    blame_missing(broker);
  else if (broker->assembly.n > 1)
    blame_last(broker);
}

/* Without a reply the batch has failed, or its requests are held. */
void msi_timing_free(msi_broker *broker) {
  const msi_head_times *times = &broker->times;
  if (!broker->part) return;
  msi_region_end(REGION);
  if (times->computed_ns)
    msi_timing_add(&broker->part->engine, times->computed_ns - times->gathered_ns);
  broker->profile->free_ns = times->replied_ns ? times->replied_ns : msi_now();
  broker->profile->part->seen_ns = broker->profile->free_ns;
  if (trace_of(broker)) trace_batch(broker, &broker->profile->trace);
}

/* Here is a request captured too: so that has no branch of its own.
 * Of a held request the batch has ended before. One that is computed by itself is computed when its
 * reply is. */
void msi_timing_reply(msi_broker *broker, const msi_entry *entry, const msi_origin *origin,
                      msi_slot *slot, int64_t computed_ns) {
  if (broker->capture.on) msi_capture_reply(broker, entry, origin, slot);
  if (!broker->part) return;
  int is_held = !broker->open || origin->closed_ns != broker->times.closed_ns;
  msi_head_times times = {.closed_ns = origin->closed_ns, .gathered_ns = origin->closed_ns};
  if (!is_held) times = broker->times;
  times.taken_ns = entry->taken_ns;
  times.replied_ns = msi_now();
  times.computed_ns = broker->engine.by_request ? times.replied_ns : computed_ns;
  if (!is_held) broker->times = times;
  msi_reply_times sent = {.taken_ns = times.taken_ns,
                          .free_ns = times.free_ns,
                          .gather_ns = (float)(times.gathered_ns - times.closed_ns),
                          .reply_ns = (float)(times.replied_ns - times.computed_ns)};
  slot->reply.compute_ns = times.computed_ns - times.closed_ns;
  memcpy(slot->output, &sent, sizeof sent);
}
