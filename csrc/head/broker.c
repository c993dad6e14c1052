#include "head/broker.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "head/cached.h"
#include "head/capture.h"
#include "head/empty.h"
#include "head/fit.h"
#include "head/free_dims.h"
#include "head/leases.h"
#include "head/loss.h"
#include "head/refusal.h"
#include "head/rounds.h"
#include "head/shown.h"
#include "head/timing.h"

/* ---- open and close ---------------------------------------------------------- */

int msi_broker_open(msi_broker *broker, const msi_world *world,
                    const mpiserve_description *description, int service_index,
                    size_t bytes[MSI_PARTS]) {
  *broker =
      (msi_broker){.world = world, .description = description, .has_room = 1, .failed_rank = -1};
  broker->label = msi_shown_label(description);
  broker->policy = (msi_policy){.alike_rows = description->max_batch_rows,
                                .max_delay_ns = description->max_delay_ns,
                                .queue_rows = description->max_queue_rows,
                                .together = description->rows == MPISERVE_TOGETHER ||
                                            description->rows == MPISERVE_NO_ROWS,
                                .special = description->reproducible ? MSI_IN_ROUNDS : MSI_PLAIN,
                                .alike = msi_free_dims_alike,
                                .of = broker->inboxes};
  int code = msi_queue_open(&broker->queue);
  if (!code) code = msi_queue_open(&broker->lease_queue);
  if (!code) code = msi_change_queue_open(&broker->changes, broker->inboxes);
  for (int t = 0; t < MSI_TRANSPORTS && !code; t++) {
    code = msi_inbox_open(&broker->inboxes[t], world, t, description, service_index, bytes[t]);
    bytes[t] += broker->inboxes[t].layout.bytes;
    uint32_t lanes = broker->inboxes[t].layout.lanes;
    for (uint32_t l = 0; l < lanes && !code; l++)
      ++*(broker->inboxes[t].lanes[l].guest ? &broker->guests : &broker->remaining);
    broker->remote += msi_transport_at(t)->same_node ? 0 : lanes;
  }
  const msi_layout *layout = &broker->inboxes[0].layout;
  broker->policy.max_rows = layout->is_ragged ? layout->batch_rows : layout->max_plain_rows;
  if (!code) code = msi_assembly_open(&broker->assembly, broker->inboxes, &bytes[MSI_OWN]);
  if (!code) code = msi_cached_open(broker);
  broker->assembly.batch.service = service_index;
  return code;
}

void msi_broker_attach(msi_broker *broker, msi_window *window, msi_progress *progress) {
  broker->progress = progress;
  for (int t = 0; t < MSI_TRANSPORTS; t++) msi_inbox_attach(&broker->inboxes[t], window);
  msi_assembly_attach(&broker->assembly, window->memory[MSI_OWN]);
  msi_assembly_gather(&broker->assembly, broker->description->reproducible, 0);
  msi_life_begin(&broker->life, broker->inboxes, broker->world->launched_ns,
                 broker->world->opened_ns, broker->description->error);
  if (!broker->description->spare || broker->description->error) return;
  broker->shut = broker->census.suspended = 1;
  msi_life_enter(&broker->life, MPISERVE_LAUNCHED);
}

void msi_broker_close(msi_broker *broker) {
  msi_life_enter(&broker->life, MPISERVE_GONE);
  for (int t = 0; t < MSI_TRANSPORTS; t++) msi_inbox_close(&broker->inboxes[t]);
  msi_queue_close(&broker->queue);
  msi_queue_close(&broker->lease_queue);
  msi_ticket_table_close(&broker->tickets);
  msi_change_queue_close(&broker->changes);
  msi_cached_close(broker);
  msi_assembly_close(&broker->assembly);
}

/* ---- requests ------------------------------------------------------------------- */

/* Where the service is suspended the request goes on: its client sends it to another replica. Not
 * inlined: other requests would save registers for it. */
__attribute__((noinline)) static int turn_away(msi_broker *broker, const msi_entry *entry) {
  if (broker->failed_rank >= 0) return msi_refuse_after_failure(broker, entry);
  return msi_inbox_reply(&broker->inboxes[entry->inbox], entry->lane, entry->sequence,
                         MSI_SUSPENDED, NULL);
}

/* Not inlined: requests that lie in slots or leases, as those of most services do, pay nothing for
 * it. 0: it is for the queue, else code says how it ended. */
__attribute__((noinline)) static int take_special(msi_broker *broker, msi_entry *entry,
                                                  const msi_request_header *request, int *code) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  if (msi_fit(inbox, entry, request, inbox->layout.max_rows)) {
    if (broker->assembly.cached) return msi_cached_take(broker, entry, code);
    if (msi_inbox_read_dims(inbox, entry->lane, entry->sequence)) return 0;
  }
  *code = msi_empty_take(broker, entry);
  return 1;
}

/* Does a request that finds no room in the queue stay in its lane? */
static int waits(const msi_broker *broker) {
  return broker->policy.queue_rows && broker->description->on_full == MPISERVE_WAIT;
}

/* Hosts have clocks of their own. The sum may be anything, but is defined, and never before now. */
static int64_t deadline_of(const msi_broker *broker, const msi_entry *entry, int64_t deadline_ns) {
  if (!deadline_ns) return 0;
  if (!broker->inboxes[entry->inbox].transport->same_node)
    deadline_ns = (int64_t)((uint64_t)entry->taken_ns + (uint64_t)deadline_ns);
  return deadline_ns > entry->taken_ns ? deadline_ns : entry->taken_ns;
}

/* Requests that follow it may have nowhere else to go. */
static int is_starting(const msi_broker *broker) {
  return broker->failed_rank < 0 && msi_change_queue_starts(&broker->changes);
}

static int on_infer(msi_broker *broker, msi_entry *entry, const msi_request_header *request) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  msi_lane *lane = &inbox->lanes[entry->lane];
  int code;
  if (broker->shut && !is_starting(broker)) return turn_away(broker, entry);
  if (!msi_fit(inbox, entry, request, inbox->layout.max_plain_rows) &&
      take_special(broker, entry, request, &code))
    return code;
  entry->goes_on = request->kind == MSI_PIECE;
  entry->piece = entry->goes_on || request->kind == MSI_LAST_PIECE;
  if (entry->piece && broker->policy.together) return msi_refuse_piece(broker, entry);
  if (!waits(broker) && !msi_queue_admits(&broker->policy, &broker->queue, entry->rows))
    return msi_refuse_for_room(broker, entry);
  entry->priority = request->priority > INT8_MIN ? request->priority : 0;
  entry->deadline_ns = deadline_of(broker, entry, request->deadline_ns);
  msi_census_join(&broker->census, lane);
  lane->passing = request->kind != MSI_INFER;
  code = msi_queue_push(&broker->queue, *entry);
  if (!code) msi_census_queue(&broker->census, lane);
  return code;
}

/* Pieces that wait were sent to a model that takes rows one by one. */
int msi_broker_rows_set(msi_broker *broker, int together) {
  int code = MPISERVE_OK;
  broker->policy.together = together;
  msi_rounds_forget(broker);
  msi_cached_forget(broker);
  for (uint32_t i = 0; i < broker->queue.n && together && !code;) {
    if (!msi_queue_at(&broker->queue, i)->piece) {
      i++;
      continue;
    }
    msi_entry waiting = msi_queue_remove(&broker->queue, i);
    msi_census_unqueue(&broker->census, &broker->inboxes[waiting.inbox].lanes[waiting.lane]);
    code = msi_refuse_piece(broker, &waiting);
  }
  return code;
}

static int turn_all_away(msi_broker *broker) {
  int code = MPISERVE_OK;
  while (broker->queue.n && !code) {
    msi_entry waiting = msi_queue_pop(&broker->queue);
    msi_census_unqueue(&broker->census, &broker->inboxes[waiting.inbox].lanes[waiting.lane]);
    code = turn_away(broker, &waiting);
  }
  return code;
}

static int end_tickets(msi_broker *broker) {
  int code = MPISERVE_OK;
  msi_ticket *held;
  while (!code && (held = msi_ticket_table_any(&broker->tickets))) {
    msi_entry entry = held->entry;
    msi_broker_end_ticket(broker, held);
    code = msi_refuse_after_failure(broker, &entry);
  }
  return code;
}

int msi_broker_fail(msi_broker *broker, int rank, const void *text, size_t bytes) {
  if (broker->failed_rank < 0) {
    memcpy(broker->failed_text, text, bytes);
    broker->failed_text[bytes] = 0;
    broker->failed_rank = rank;
    broker->shut = 1;
  }
  int code = turn_all_away(broker);
  return code ? code : end_tickets(broker);
}

static int on_fail(msi_broker *broker, const msi_entry *entry) {
  const msi_inbox *inbox = &broker->inboxes[entry->inbox];
  size_t bytes = entry->rows < MSI_EAGER_BYTES ? entry->rows : MSI_EAGER_BYTES;
  return msi_broker_fail(broker, inbox->clients[entry->lane],
                         msi_inbox_slot(inbox, entry->lane, entry->sequence)->input, bytes);
}

/* Not inlined: it would cost the requests of all others instructions, which save registers. */
__attribute__((noinline)) static int take_other(msi_broker *broker, const msi_entry *entry,
                                                int kind) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  msi_lane *lane = &inbox->lanes[entry->lane];
  int code = MPISERVE_OK;
  switch (kind) {
    case MSI_LEASE: return msi_leases_give(broker, entry);
    case MSI_RECORD: return msi_capture_take(broker, entry);
    case MSI_KEEP: return msi_leases_keep(broker, entry);
    case MSI_CHANGE:
      return broker->failed_rank < 0 ? msi_change_queue_push(&broker->changes, entry)
                                     : msi_refuse_after_failure(broker, entry);
    case MSI_ATTACH: msi_census_attach(&broker->census, lane); break;
    case MSI_DEPART: msi_census_depart(&broker->census, lane); break;
    case MSI_FAIL: code = on_fail(broker, entry); break;
    case MSI_LEAVE: code = msi_loss_of_leaver(broker, inbox, entry->lane); break;
    default: return msi_broker_refuse(broker, entry, MPISERVE_EARG, "a request of unknown kind");
  }
  return code ? code : msi_inbox_reply(inbox, entry->lane, entry->sequence, MPISERVE_OK, NULL);
}

static int take(msi_broker *broker, msi_inbox *inbox, uint32_t lane,
                const msi_request_header *request) {
  msi_entry entry = {.inbox = (uint8_t)inbox->transport->number,
                     .lane = lane,
                     .rows = request->rows,
                     .lease = request->lease};
  entry.sequence = msi_inbox_take(inbox, lane, &entry.taken_ns);
  if (!entry.taken_ns) entry.taken_ns = msi_broker_now(broker);
  if (request->sequence != entry.sequence)
    return msi_broker_refuse(broker, &entry, MPISERVE_ESTATE,
                             "the lane is out of step with its doorbell");
  int kind = request->kind;
  return msi_kind_infers(kind) ? on_infer(broker, &entry, request)
                               : take_other(broker, &entry, kind);
}

/* Is it for the queue? What is cancelled or out of step is not. */
static int is_for_queue(const msi_inbox *inbox, uint32_t lane, const msi_request_header *request) {
  uint64_t sequence = inbox->lanes[lane].taken + 1;
  return msi_kind_infers(request->kind) && request->sequence == sequence &&
         !msi_slot_cancelled(msi_inbox_slot(inbox, lane, sequence));
}

/* With on_full = wait, a request for which the queue has no room stays in its lane, and
 * none of those that come after it in this round gets past it. Other kinds do. */
static int has_to_wait(msi_broker *broker, msi_inbox *inbox, uint32_t lane,
                       const msi_request_header *request) {
  if (!waits(broker) || !is_for_queue(inbox, lane, request)) return 0;
  if (!broker->queue.full) {
    if (msi_queue_admits(&broker->policy, &broker->queue, request->rows)) return 0;
    broker->queue.full = 1;
    broker->turn_inbox = inbox->transport->number;
    broker->turn_lane = lane;
  }
  msi_inbox_note(inbox, lane, msi_broker_now(broker));
  return 1;
}

static int poll_lanes(msi_broker *broker, int transport, uint32_t from, uint32_t to) {
  msi_inbox *inbox = &broker->inboxes[transport];
  int code = msi_inbox_sync(inbox);
  msi_request_header request;
  uint32_t last = to, left = 0; /* that a lane may ring for in one round */
  for (uint32_t lane = from; !code && msi_inbox_rung(inbox, &lane) && lane < to;) {
    if (lane != last) left = MSI_SLOTS;
    last = lane;
    if (left-- && msi_inbox_read(inbox, lane, &request) &&
        !has_to_wait(broker, inbox, lane, &request))
      code = take(broker, inbox, lane, &request);
    else
      lane++;
  }
  return code;
}

/* Once around, from the lane that has waited for room in the queue longest. */
int msi_broker_poll(msi_broker *broker) {
  int first = broker->turn_inbox, code = MPISERVE_OK;
  uint32_t lane = broker->turn_lane;
  broker->now_ns = 0;
  broker->queue.full = 0;
  for (int i = 0; i < MSI_TRANSPORTS && !code; i++) {
    int at = (first + i) % MSI_TRANSPORTS;
    uint32_t lanes = broker->inboxes[at].layout.lanes;
    if (lanes) code = poll_lanes(broker, at, i ? 0 : lane, lanes);
  }
  return lane && !code ? poll_lanes(broker, first, 0, lane) : code;
}

/* ---- batches --------------------------------------------------------------------- */

static int drop(msi_broker *broker, uint32_t i, int cancelled) {
  msi_entry entry = msi_queue_remove(&broker->queue, i);
  msi_census_unqueue(&broker->census, &broker->inboxes[entry.inbox].lanes[entry.lane]);
  ++*(cancelled ? &broker->counters.cancelled : &broker->counters.dropped);
  if (msi_rounds_are_on(broker)) msi_rounds_lose(broker, &entry);
  if (cancelled) return msi_broker_refuse(broker, &entry, MPISERVE_ECANCELLED, NULL);
  return msi_broker_refuse(broker, &entry, MPISERVE_EDEADLINE,
                           "the deadline passed before the model could begin with the request");
}

/* Requests that nobody wants any more end here: no batch is closed for them. */
static int drop_unwanted(msi_broker *broker) {
  int code = MPISERVE_OK;
  for (uint32_t i = 0; i < broker->queue.n && !code;) {
    const msi_entry *e = msi_queue_at(&broker->queue, i);
    int cancelled =
        msi_slot_cancelled(msi_inbox_slot(&broker->inboxes[e->inbox], e->lane, e->sequence));
    if (cancelled || (e->deadline_ns && e->deadline_ns <= msi_broker_now(broker)))
      code = drop(broker, i, cancelled);
    else
      i++;
  }
  return code;
}

/* Moves requests from the queue into the batch. */
static int collect(msi_broker *broker) {
  if (msi_rounds_are_on(broker)) return msi_rounds_collect(broker);
  uint32_t span, n = msi_batch_pick(&broker->policy, &broker->queue, &span);
  int code = msi_assembly_begin(&broker->assembly, n);
  for (uint32_t i = 0; i < span && !code; i++) {
    const msi_entry *e = msi_queue_at(&broker->queue, i);
    if (!e->picked) continue;
    msi_census_unqueue(&broker->census, &broker->inboxes[e->inbox].lanes[e->lane]);
    msi_assembly_add(&broker->assembly, e);
  }
  msi_queue_take_picked(&broker->queue, span);
  return code;
}

static void count_batch(msi_broker *broker, msi_close_reason reason, int in_place) {
  mpiserve_counters *c = &broker->counters;
  c->batches++;
  c->batches_in_place += in_place;
  c->closed_by_rows += reason == MSI_CLOSED_ROWS;
  c->closed_by_census += reason == MSI_CLOSED_CENSUS;
  c->closed_by_delay += reason == MSI_CLOSED_DELAY;
}

static int close_batch(msi_broker *broker, msi_close_reason reason) {
  int is_missed = reason == MSI_CLOSED_DELAY && broker->census.asked; /* not for gateways alone */
  for (int t = 0; t < MSI_TRANSPORTS && is_missed; t++)
    msi_census_note_missing(&broker->census, &broker->inboxes[t]);
  int code = collect(broker);
  if (code) return code;
  broker->closed_ns = msi_broker_now(broker);
  if (!broker->engine.by_request) msi_assembly_lay_out(&broker->assembly);
  count_batch(broker, reason, broker->engine.by_request || broker->assembly.batch.in_place);
  broker->progress->unanswered++;
  broker->open = 1;
  if (MSI_PROFILED) msi_timing_closed(broker, reason);
  return MPISERVE_OK;
}

static msi_close_reason decide(msi_broker *broker) {
  if (msi_rounds_are_on(broker)) return msi_rounds_decide(broker, msi_broker_now(broker));
  if (!broker->queue.n) return MSI_OPEN;
  /* Who comes now is to join those under way; some who are missing wait for an answer. */
  if (broker->tickets.n) return MSI_CLOSED_HELD;
  return msi_batch_decide(&broker->policy, &broker->queue, broker->census.asked,
                          broker->census.able, msi_broker_now(broker));
}

/* What nobody wants any more would be in a round. */
__attribute__((noinline)) static int look_specially(msi_broker *broker) {
  if (broker->policy.special == MSI_CACHED) return msi_cached_look(broker);
  return msi_rounds_are_on(broker) ? drop_unwanted(broker) : MPISERVE_OK;
}

int msi_broker_look(msi_broker *broker) {
  int code = msi_broker_poll(broker);
  if (!code && broker->lease_queue.n) code = msi_leases_refuse_late(broker, msi_broker_now(broker));
  if (code) return code;
  if (broker->changes.waiting.n) {
    if (msi_change_queue_has_news(&broker->changes))
      return msi_error(MPISERVE_ECHANGE, "a client asks for another model");
    if (msi_change_queue_pauses(&broker->changes)) return MPISERVE_OK;
  }
  if (broker->policy.special) code = look_specially(broker);
  msi_close_reason reason = decide(broker);
  uint32_t n = broker->queue.n;
  if (reason || broker->queue.timed) code = drop_unwanted(broker);
  if (broker->queue.n < n) reason = decide(broker);
  if (code || !reason || !broker->has_room || broker->shut) return code;
  if (broker->queue.empty) code = msi_empty_answer(broker);
  if (msi_rounds_are_on(broker) && !msi_rounds_left(broker)) return code; /* all of a round */
  return code || !broker->queue.n ? code : close_batch(broker, reason);
}

int msi_broker_enter(msi_broker *broker, int state) {
  if (state < MPISERVE_LAUNCHED || state > MPISERVE_FAILED || state == MPISERVE_BUSY ||
      state == MPISERVE_SUSPENDED)
    return msi_error(MPISERVE_EARG, "%d is no state that a server may set", state);
  msi_life_enter(&broker->life, state);
  if (MSI_PROFILED) msi_timing_state(broker, state);
  return MPISERVE_OK;
}

static int nobody_asks(msi_broker *broker) {
  int code = turn_all_away(broker);
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    msi_census_uncount_all(&broker->census, &broker->inboxes[t]);
  return code;
}

int msi_broker_suspend(msi_broker *broker, int suspended) {
  int resumed = broker->has_room ? MPISERVE_READY : MPISERVE_LOADING;
  int state = suspended ? MPISERVE_SUSPENDED : resumed;
  if (suspended != broker->census.suspended) {
    msi_life_enter(&broker->life, state);
    if (MSI_PROFILED) msi_timing_state(broker, state);
  }
  broker->census.suspended = suspended;
  broker->shut = suspended || broker->failed_rank >= 0;
  msi_cached_forget(broker);
  if (!suspended) {
    msi_leases_rejoin(broker);
    return MPISERVE_OK;
  }
  return nobody_asks(broker);
}

int msi_broker_change_reply(msi_broker *broker, int code, const char *text) {
  if (MSI_PROFILED) msi_timing_change(broker, code);
  if (!code) msi_cached_forget(broker);
  int failed = msi_change_queue_reply(&broker->changes, code, text);
  return failed || !broker->census.suspended || is_starting(broker) ? failed : nobody_asks(broker);
}

void msi_broker_end_batch(msi_broker *broker) {
  broker->progress->unanswered--;
  broker->open = 0;
  if (MSI_PROFILED) msi_timing_free(broker);
  if (!broker->engine.by_request && !broker->tickets.n) msi_life_busy(&broker->life, 0);
  msi_progress_start(broker->progress); /* other services may hold requests */
}

void msi_broker_end_ticket(msi_broker *broker, msi_ticket *held) {
  msi_ticket_table_drop(&broker->tickets, held);
  if (!broker->tickets.n && !broker->open) msi_life_busy(&broker->life, 0);
  broker->progress->unanswered--;
}
