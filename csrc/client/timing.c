#include "client/timing.h"

#include <stdio.h>
#include <string.h>

#include "base/regions.h"
#include "client/lease.h"

/* Callers wait in pieces, to look at signals. Who is away for longer does something else. */
static const int64_t AWAY_NS = 1000000;
static const char REGION[] = "mpiserve wait";

void msi_timing_open(msi_client *client, msi_profile *profile) {
  client->profile = profile;
  for (int i = 0; i < client->n_services && profile->part; i++) {
    client->services[i].part = &profile->clients[i];
    snprintf(profile->clients[i].name, MPISERVE_NAME_SIZE, "%s", client->services[i].name);
    if (profile->trace.file)
      memcpy(profile->trace.names[i], profile->clients[i].name, MPISERVE_NAME_SIZE);
  }
}

/* Can it be sent at once? Then its submit is its send, and the clock is not read again. */
static int is_first(msi_client *client, const msi_call *call) {
  const msi_endpoint *endpoint = call->message.endpoint;
  return !msi_send_queue_of(client, endpoint)->first && msi_endpoint_can_send(endpoint) &&
         !msi_lease_wanted(endpoint, &call->payload);
}

void msi_timing_begin(msi_client *client, msi_call *call, int blocks) {
  int64_t submitted = call->submitted_ns;
  call->times = (msi_client_times){.submitted_ns = submitted,
                                   .entered_ns = blocks ? submitted : 0,
                                   .is_late = !is_first(client, call)};
}

void msi_timing_send(msi_call *call) {
  call->times.begun_ns = call->times.is_late ? msi_now() : call->times.submitted_ns;
}

void msi_timing_sent(msi_call *call) {
  const msi_endpoint *endpoint = call->message.endpoint;
  msi_client_times *times = &call->times;
  int is_timed = call->payload.input.lease >= 0 && endpoint->written_ns;
  times->sent_ns = is_timed ? endpoint->written_ns : times->begun_ns;
  times->same_clock = endpoint->path.transport->same_node;
  times->is_answered = 0;
}

/* Any, of a corrupted head: what is too large for an integer is none. */
static int64_t whole(float ns) { return ns > 0 && ns < 1e18F ? (int64_t)ns : 0; }

static msi_head_times head_times(const msi_slot *slot) {
  msi_reply_times sent;
  memcpy(&sent, slot->output, sizeof sent);
  uint64_t taken = (uint64_t)sent.taken_ns, closed = taken + (uint64_t)slot->reply.queue_ns;
  int64_t computed = (int64_t)(closed + (uint64_t)slot->reply.compute_ns);
  return (msi_head_times){.taken_ns = sent.taken_ns,
                          .free_ns = sent.free_ns,
                          .closed_ns = (int64_t)closed,
                          .gathered_ns = (int64_t)(closed + (uint64_t)whole(sent.gather_ns)),
                          .computed_ns = computed,
                          .replied_ns =
                              (int64_t)((uint64_t)computed + (uint64_t)whole(sent.reply_ns))};
}

/* Errors have no times of the head. */
void msi_timing_seen(msi_call *call, int slot) {
  const msi_slot *from = &call->message.endpoint->path.slots[slot];
  call->times.seen_ns = msi_now();
  call->times.is_answered = !from->reply.code && call->payload.rows;
  if (call->times.is_answered) call->times.head = head_times(from);
}

void msi_timing_ended(msi_call *call) {
  msi_client_times *times = &call->times;
  const msi_endpoint *endpoint = call->message.endpoint;
  const msi_payload *p = &call->payload;
  int is_quick = times->is_answered &&
                 msi_endpoint_is_quick(endpoint, &p->output, &endpoint->layout.outputs, p->rows);
  times->ended_ns = is_quick ? times->seen_ns : msi_now();
  call->stats.total_ns = times->ended_ns - times->submitted_ns;
}

static void end_region(msi_client_times *times) {
  if (times->in_region) msi_region_end(REGION);
  times->in_region = 0;
}

/* A test waits only if it is the last one. */
void msi_timing_enter(msi_call *call, double timeout) {
  msi_client_times *times = &call->times;
  times->in_region = timeout != 0;
  if (times->in_region) msi_region_begin(REGION);
  if (times->entered_ns && !times->left_ns) return;
  int64_t now = msi_now();
  int was_away = !times->left_ns || now - times->left_ns > AWAY_NS;
  if (was_away || timeout == 0) times->entered_ns = now;
  times->left_ns = 0;
}

void msi_timing_leave(msi_call *call, double timeout) {
  end_region(&call->times);
  if (timeout == 0)
    call->times.entered_ns = 0;
  else
    call->times.left_ns = msi_now();
}

static void count(msi_client_part *part, const msi_call *call, int code) {
  const mpiserve_stats *stats = &call->stats;
  int at = -code < MSI_CODES ? -code : MSI_CODES - 1;
  part->requests++;
  part->rows += call->payload.rows;
  part->fallbacks += stats->source != MPISERVE_MODEL;
  part->untrusted_rows += stats->untrusted_rows;
  part->answered += call->times.is_answered;
  part->batch_rows += stats->batch_rows;
  part->batch_requests += stats->batch_requests;
  if (code) part->errors[at]++;
}

static void trace(const msi_client *client, const msi_call *call, int code) {
  const msi_trace *to = &client->profile->trace;
  const msi_client_times *t = &call->times;
  const msi_head_times *h = &t->head;
  if (!to->file) return;
  int flags = (t->is_late ? MSI_EVENT_LATE : 0) | (t->is_answered ? MSI_EVENT_ANSWERED : 0) |
              (t->same_clock ? MSI_EVENT_SAME_CLOCK : 0) | call->stats.source * MSI_EVENT_SOURCE;
  *msi_trace_next(to) =
      (msi_event){.kind = MSI_EVENT_REQUEST,
                  .flags = (uint8_t)flags,
                  .code = (int16_t)code,
                  .service = (int32_t)(call->service - client->services),
                  .peer = call->message.endpoint->path.head,
                  .rows = (uint32_t)call->payload.rows,
                  .requests = (uint32_t)call->stats.batch_requests,
                  .batch_rows = (uint32_t)call->stats.batch_rows,
                  .times = {t->submitted_ns, t->begun_ns, t->sent_ns, t->seen_ns, t->ended_ns,
                            t->entered_ns, t->returned_ns, h->taken_ns, h->free_ns, h->closed_ns,
                            h->gathered_ns, h->computed_ns, h->replied_ns}};
  msi_trace_put(to);
}

void msi_timing_moved(const msi_client *client, const msi_call *call, int from) {
  const msi_trace *to = &client->profile->trace;
  if (!to->file) return;
  *msi_trace_next(to) = (msi_event){.kind = MSI_EVENT_MOVED,
                                    .service = (int32_t)(call->service - client->services),
                                    .peer = call->message.endpoint->path.head,
                                    .rows = (uint32_t)call->payload.rows,
                                    .requests = (uint32_t)from,
                                    .times = {msi_now()}};
  msi_trace_put(to);
}

/* A fallback, or a check of the values, has taken time since it ended. */
void msi_timing_report(msi_client *client, msi_call *call, int code) {
  msi_client_times *times = &call->times;
  msi_client_part *part = call->service->part;
  end_region(times);
  if (!part) return;
  if (!times->entered_ns) times->entered_ns = times->ended_ns;
  if (times->ended_ns < times->entered_ns)
    times->returned_ns = times->entered_ns;
  else
    times->returned_ns = times->ended_ns;
  if (code || !times->ended_ns || call->service->checked || call->stats.source)
    times->returned_ns = msi_now();
  count(part, call, code);
  msi_profile_add(client->profile, part, times);
  trace(client, call, code);
}
