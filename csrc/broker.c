#include "broker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

enum { PATIENCE_BATCHES = 8 }; /* without a client, until the census forgets it */

static const int64_t TENANT_LIMIT_NS = 10000000000;

/* ---- open and close ---------------------------------------------------------- */

int msi_broker_open(msi_broker *broker, const msi_world *world,
                    const mpiserve_description *description, size_t bytes[MSI_TRANSPORTS]) {
  *broker = (msi_broker){.world = world, .description = description, .failed_rank = -1};
  broker->policy = (msi_policy){description->max_batch_rows, description->max_delay_ns};
  int code = msi_queue_open(&broker->queue);
  if (!code) code = msi_queue_open(&broker->tenants);
  for (int t = 0; t < MSI_TRANSPORTS && !code; t++) {
    code = msi_port_open(&broker->ports[t], world, t, description);
    bytes[t] = broker->ports[t].layout.bytes;
    broker->remaining += broker->ports[t].layout.lanes;
  }
  return code;
}

int msi_broker_attach(msi_broker *broker, msi_window *window) {
  broker->window = window;
  int code = MPISERVE_OK;
  for (int t = 0; t < MSI_TRANSPORTS && !code; t++)
    code = msi_port_attach(&broker->ports[t], window);
  if (!code && broker->ports[MPISERVE_RMA].layout.lanes)
    code = msi_thread_open(&broker->thread, window);
  return code;
}

void msi_broker_close(msi_broker *broker) {
  msi_thread_close(&broker->thread);
  for (int t = 0; t < MSI_TRANSPORTS; t++) msi_port_close(&broker->ports[t]);
  msi_queue_close(&broker->queue);
  msi_queue_close(&broker->tenants);
  for (int i = 0; i < MPISERVE_MAX_TENSORS; i++) {
    free(broker->gathered_in[i]);
    free(broker->gathered_out[i]);
  }
  free(broker->members);
}

/* ---- the census ----------------------------------------------------------------- */

static void lane_join(msi_broker *broker, msi_lane *lane) {
  lane->missed = 0;
  if (lane->active || lane->gone) return;
  lane->active = 1;
  broker->able++;
}

static void lane_rest(msi_broker *broker, msi_lane *lane) {
  broker->able -= lane->active;
  lane->active = 0;
}

static void lane_queue(msi_broker *broker, msi_lane *lane) { broker->asked += !lane->queued++; }

static void lane_unqueue(msi_broker *broker, msi_lane *lane) { broker->asked -= !--lane->queued; }

/* The delay closed a batch: those who did not come may not be coming. They
 * count again with their next request. */
static void note_missing(msi_broker *broker) {
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    for (uint32_t l = 0; l < broker->ports[t].layout.lanes; l++) {
      msi_lane *lane = &broker->ports[t].lanes[l];
      if (lane->active && !lane->queued && ++lane->missed >= PATIENCE_BATCHES)
        lane_rest(broker, lane);
    }
}

/* ---- requests ------------------------------------------------------------------- */

static int refuse(msi_broker *broker, const msi_entry *entry, int code, const char *text) {
  broker->counters.requests++;
  broker->counters.errors++;
  return msi_port_reply(&broker->ports[entry->port], entry->lane, entry->sequence, code, text);
}

static int refuse_after_failure(msi_broker *broker, const msi_entry *entry) {
  char text[MPISERVE_TEXT_SIZE + 64];
  snprintf(text, sizeof text, "simulation rank %d ended with an error: %s", broker->failed_rank,
           broker->failed_text);
  return refuse(broker, entry, MPISERVE_EPEER, text);
}

static int reply_lease(msi_broker *broker, const msi_entry *entry) {
  msi_port *port = &broker->ports[entry->port];
  msi_slot *slot;
  int code = msi_port_reply_begin(port, entry->lane, entry->sequence, &slot);
  if (code) return code;
  const msi_lane *lane = &port->lanes[entry->lane];
  slot->reply.lease_begin = lane->leases[entry->lease].begin;
  slot->reply.lease_rows = lane->leases[entry->lease].rows;
  slot->reply.lease_once = msi_port_lease_once(port, lane->leases[entry->lease]);
  return msi_port_reply_end(port, entry->lane, entry->sequence, 0);
}

/* In turn, so that a large request is not passed for ever by small ones. */
static int serve_tenants(msi_broker *broker) {
  int code = MPISERVE_OK;
  while (broker->tenants.n && !code) {
    msi_entry *first = msi_queue_at(&broker->tenants, 0);
    if (!msi_port_lease(&broker->ports[first->port], first->lane, first->lease, first->rows)) break;
    msi_entry entry = msi_queue_pop(&broker->tenants);
    code = reply_lease(broker, &entry);
  }
  return code;
}

/* Rows that are missing may be with a client that is itself waiting, outside
 * this library, for the one that needs them: an error ends what would hang. */
static int refuse_late_tenants(msi_broker *broker, int64_t now) {
  int code = MPISERVE_OK;
  while (!code && broker->tenants.n &&
         now - msi_queue_at(&broker->tenants, 0)->taken_ns > TENANT_LIMIT_NS) {
    msi_entry entry = msi_queue_pop(&broker->tenants);
    code = refuse(broker, &entry, MPISERVE_ENOMEM,
                  "no memory for the payload came free within 10 s: other requests hold it. "
                  "Raise the service's pool_bytes, or take results before waiting for other ranks");
    if (!code) code = serve_tenants(broker);
  }
  return code;
}

static int on_lease(msi_broker *broker, const msi_entry *entry) {
  msi_port *port = &broker->ports[entry->port];
  if (entry->lease < 0 || entry->lease >= MSI_SLOTS || entry->rows > port->layout.max_rows)
    return refuse(broker, entry, MPISERVE_EROWS, "a lease that cannot be given");
  msi_port_lease_drop(port, entry->lane, entry->lease);
  int code = entry->rows ? msi_queue_push(&broker->tenants, *entry) : reply_lease(broker, entry);
  return code ? code : serve_tenants(broker);
}

/* The client has checked this too; what is in a window is not trusted all the same. */
static int fits(const msi_port *port, const msi_entry *entry) {
  if (entry->rows < 1 || entry->rows > port->layout.max_rows) return 0;
  if (entry->lease < 0) return msi_layout_eager(&port->layout, entry->rows);
  return entry->lease < MSI_SLOTS &&
         entry->rows <= port->lanes[entry->lane].leases[entry->lease].rows;
}

static int on_infer(msi_broker *broker, msi_entry *entry) {
  msi_port *port = &broker->ports[entry->port];
  msi_lane *lane = &port->lanes[entry->lane];
  if (broker->failed_rank >= 0) return refuse_after_failure(broker, entry);
  if (!fits(port, entry)) return refuse(broker, entry, MPISERVE_EROWS, "rows do not fit the lane");
  entry->row_begin = entry->lease < 0 ? MSI_EAGER_ROW : lane->leases[entry->lease].begin;
  lane_join(broker, lane);
  int code = msi_queue_push(&broker->queue, *entry);
  if (!code) lane_queue(broker, lane);
  return code;
}

static int on_fail(msi_broker *broker, const msi_entry *entry, const msi_slot *slot) {
  if (broker->failed_rank < 0) {
    size_t bytes = slot->request.text_bytes;
    if (bytes > MSI_EAGER_BYTES) bytes = MSI_EAGER_BYTES;
    memcpy(broker->failed_text, slot->input, bytes);
    broker->failed_text[bytes] = 0;
    broker->failed_rank = broker->ports[entry->port].clients[entry->lane];
  }
  int code = MPISERVE_OK;
  while (broker->queue.n && !code) {
    msi_entry waiting = msi_queue_pop(&broker->queue);
    lane_unqueue(broker, &broker->ports[waiting.port].lanes[waiting.lane]);
    code = refuse_after_failure(broker, &waiting);
  }
  return code;
}

static int on_leave(msi_broker *broker, const msi_entry *entry) {
  msi_port *port = &broker->ports[entry->port];
  msi_lane *lane = &port->lanes[entry->lane];
  lane_rest(broker, lane);
  broker->remaining -= !lane->gone;
  lane->gone = 1;
  for (int i = 0; i < MSI_SLOTS; i++) msi_port_lease_drop(port, entry->lane, i);
  return serve_tenants(broker);
}

static int take(msi_broker *broker, msi_port *port, uint32_t lane) {
  msi_entry entry = {.port = (uint32_t)port->transport, .lane = lane, .taken_ns = msi_now()};
  msi_slot *slot = msi_port_take(port, lane, &entry.sequence);
  if (!slot)
    return refuse(broker, &entry, MPISERVE_ESTATE, "the lane is out of step with its doorbell");
  entry.rows = slot->request.rows;
  entry.lease = slot->request.lease;
  int code = MPISERVE_OK;
  switch (slot->request.kind) {
    case MSI_INFER: return on_infer(broker, &entry);
    case MSI_LEASE: return on_lease(broker, &entry);
    case MSI_ATTACH: lane_join(broker, &port->lanes[lane]); break;
    case MSI_FAIL: code = on_fail(broker, &entry, slot); break;
    case MSI_LEAVE: code = on_leave(broker, &entry); break;
    default: return refuse(broker, &entry, MPISERVE_EARG, "a request of unknown kind");
  }
  return code ? code : msi_port_reply(port, lane, entry.sequence, MPISERVE_OK, NULL);
}

static int poll(msi_broker *broker) {
  int code = MPISERVE_OK;
  for (int t = 0; t < MSI_TRANSPORTS && !code; t++) {
    msi_port *port = &broker->ports[t];
    if (!port->layout.lanes) continue;
    if (t == MPISERVE_RMA) code = msi_window_progress(broker->window);
    for (uint32_t lane = 0; !code && msi_port_rung(port, &lane);) code = take(broker, port, lane);
  }
  return code;
}

/* ---- batches --------------------------------------------------------------------- */

static int reserve_members(msi_broker *broker, uint32_t n) {
  if (n <= broker->members_capacity) return MPISERVE_OK;
  msi_entry *members = realloc(broker->members, 2 * n * sizeof *members);
  if (!members) return msi_error(MPISERVE_ENOMEM, "no memory for a batch of %u requests", n);
  broker->members = members;
  broker->members_capacity = 2 * n;
  return MPISERVE_OK;
}

/* Moves requests from the queue into the batch; cancelled ones end here. */
static int collect(msi_broker *broker) {
  int64_t rows;
  uint32_t n = msi_batch_fit(&broker->policy, &broker->queue, &rows);
  int code = reserve_members(broker, n);
  broker->n_members = 0;
  broker->batch = (mpiserve_batch){0};
  for (uint32_t i = 0; i < n && !code; i++) {
    msi_entry entry = msi_queue_pop(&broker->queue);
    msi_port *port = &broker->ports[entry.port];
    lane_unqueue(broker, &port->lanes[entry.lane]);
    msi_slot *slot = msi_port_slot(port, entry.lane, entry.sequence);
    if (atomic_load_explicit(&slot->request.cancelled, memory_order_acquire)) {
      code = refuse(broker, &entry, MPISERVE_ECANCELLED, NULL);
      continue;
    }
    broker->members[broker->n_members++] = entry;
    broker->batch.rows += entry.rows;
  }
  broker->batch.requests = (int32_t)broker->n_members;
  return code;
}

/* Do the members cover one range of the slabs without a gap? Ranges of leases
 * never overlap, so first, last and sum decide. */
static int one_range(msi_broker *broker) {
  uint32_t first = UINT32_MAX, end = 0;
  for (uint32_t i = 0; i < broker->n_members; i++) {
    const msi_entry *m = &broker->members[i];
    if (m->row_begin == MSI_EAGER_ROW || m->port != broker->members[0].port) return 0;
    if (m->row_begin < first) first = m->row_begin;
    if (m->row_begin + m->rows > end) end = m->row_begin + m->rows;
  }
  broker->batch_begin = first;
  return end - first == broker->batch.rows;
}

static int reserve_gathered(msi_broker *broker, const msi_side *side, uint8_t **gathered) {
  for (int i = 0; i < side->n; i++) {
    if (gathered[i]) continue;
    size_t bytes = (size_t)broker->policy.max_rows * side->row_bytes[i];
    gathered[i] = aligned_alloc(MSI_ALIGN, (bytes + MSI_ALIGN - 1) / MSI_ALIGN * MSI_ALIGN);
    if (!gathered[i]) return msi_error(MPISERVE_ENOMEM, "no memory to gather a batch");
  }
  return MPISERVE_OK;
}

static void gather_member(msi_broker *broker, const msi_entry *m, int64_t row) {
  const msi_port *port = &broker->ports[m->port];
  const msi_side *side = &port->layout.inputs;
  const uint8_t *packed = msi_port_slot(port, m->lane, m->sequence)->input;
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    const uint8_t *from =
        m->row_begin == MSI_EAGER_ROW ? packed : msi_port_input(port, i, m->row_begin);
    memcpy(broker->gathered_in[i] + (size_t)row * side->row_bytes[i], from, bytes);
    packed += bytes;
  }
}

static int gather(msi_broker *broker) {
  const msi_layout *layout = &broker->ports[broker->members[0].port].layout;
  int code = reserve_gathered(broker, &layout->inputs, broker->gathered_in);
  if (!code) code = reserve_gathered(broker, &layout->outputs, broker->gathered_out);
  int64_t row = 0;
  for (uint32_t i = 0; i < broker->n_members && !code; i++) {
    gather_member(broker, &broker->members[i], row);
    row += broker->members[i].rows;
  }
  for (int i = 0; i < layout->inputs.n; i++) broker->batch.inputs[i] = broker->gathered_in[i];
  for (int i = 0; i < layout->outputs.n; i++) broker->batch.outputs[i] = broker->gathered_out[i];
  return code;
}

static int lay_out(msi_broker *broker) {
  if (!one_range(broker)) return gather(broker);
  const msi_port *port = &broker->ports[broker->members[0].port];
  for (int i = 0; i < port->layout.inputs.n; i++)
    broker->batch.inputs[i] = msi_port_input(port, i, broker->batch_begin);
  for (int i = 0; i < port->layout.outputs.n; i++)
    broker->batch.outputs[i] = msi_port_output(port, i, broker->batch_begin);
  broker->batch.in_place = 1;
  return MPISERVE_OK;
}

static void count_batch(msi_broker *broker, msi_close_reason reason) {
  mpiserve_counters *c = &broker->counters;
  c->batches++;
  c->batches_in_place += broker->batch.in_place;
  c->closed_by_rows += reason == MSI_CLOSED_ROWS;
  c->closed_by_census += reason == MSI_CLOSED_CENSUS;
  c->closed_by_delay += reason == MSI_CLOSED_DELAY;
}

/* Hands a batch out; *open stays 0 if all its requests had been cancelled. */
static int hand_out(msi_broker *broker, msi_close_reason reason) {
  if (reason == MSI_CLOSED_DELAY) note_missing(broker);
  int code = collect(broker);
  if (code || !broker->n_members) return code;
  code = lay_out(broker);
  if (code) return code;
  count_batch(broker, reason);
  broker->open = 1;
  broker->closed_ns = msi_now();
  msi_thread_wake(&broker->thread);
  return MPISERVE_OK;
}

int msi_broker_next(msi_broker *broker, double timeout, mpiserve_batch *batch) {
  if (broker->open) return msi_error(MPISERVE_ESTATE, "the last batch has not been answered");
  int64_t deadline = msi_deadline(timeout);
  msi_wait wait = {0};
  for (;;) {
    int code = poll(broker);
    if (code) return code;
    if (!broker->remaining)
      return msi_error(MPISERVE_ECLOSED, "every simulation rank has left the session");
    msi_close_reason reason = broker->queue.n
                                  ? msi_batch_decide(&broker->policy, &broker->queue, broker->asked,
                                                     broker->able, msi_now())
                                  : MSI_OPEN;
    if (reason) code = hand_out(broker, reason);
    if (code) return code;
    if (broker->open) break;
    if (!msi_wait_pause(&wait, &broker->world->patience)) continue;
    code = refuse_late_tenants(broker, msi_now());
    if (code) return code;
    if (msi_now() > deadline) return msi_error(MPISERVE_ETIMEOUT, "no batch within %g s", timeout);
  }
  *batch = broker->batch;
  return MPISERVE_OK;
}

/* ---- replies ------------------------------------------------------------------------ */

/* Results of one member go where its client will look for them. */
static size_t scatter_member(msi_broker *broker, const msi_entry *m, msi_slot *slot,
                             const void *const *outputs, int64_t row) {
  const msi_port *port = &broker->ports[m->port];
  const msi_side *side = &port->layout.outputs;
  uint8_t *packed = slot->output;
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    const uint8_t *from = (const uint8_t *)outputs[i] + (size_t)row * side->row_bytes[i];
    if (m->row_begin == MSI_EAGER_ROW) {
      memcpy(packed, from, bytes);
      packed += bytes;
    } else {
      uint8_t *to = msi_port_output(port, i, m->row_begin);
      if (to != from) memcpy(to, from, bytes);
    }
  }
  return (size_t)(packed - slot->output);
}

static int reply_member(msi_broker *broker, const msi_entry *m, const void *const *outputs,
                        int64_t row, int64_t now) {
  msi_port *port = &broker->ports[m->port];
  msi_slot *slot;
  int code = msi_port_reply_begin(port, m->lane, m->sequence, &slot);
  if (code) return code;
  size_t bytes = scatter_member(broker, m, slot, outputs, row);
  slot->reply.rows = (uint32_t)broker->batch.rows;
  slot->reply.requests = broker->n_members;
  slot->reply.queue_ns = broker->closed_ns - m->taken_ns;
  slot->reply.compute_ns = now - broker->closed_ns;
  broker->counters.requests++;
  broker->counters.rows += m->rows;
  return msi_port_reply_end(port, m->lane, m->sequence, bytes);
}

int msi_broker_reply(msi_broker *broker, const void *const *outputs) {
  if (!broker->open) return msi_error(MPISERVE_ESTATE, "there is no batch to answer");
  msi_thread_rest(&broker->thread);
  int64_t now = msi_now(), row = 0;
  int code = MPISERVE_OK;
  for (uint32_t i = 0; i < broker->n_members && !code; i++) {
    const msi_entry *m = &broker->members[i];
    /* In place the order of the slabs counts, else the order of gathering. */
    int64_t at = broker->batch.in_place ? m->row_begin - broker->batch_begin : row;
    code = reply_member(broker, m, outputs, at, now);
    row += m->rows;
  }
  broker->open = 0;
  return code;
}

int msi_broker_fail(msi_broker *broker, int code, const char *text) {
  if (!broker->open) return msi_error(MPISERVE_ESTATE, "there is no batch to answer");
  msi_thread_rest(&broker->thread);
  int failed = MPISERVE_OK;
  for (uint32_t i = 0; i < broker->n_members && !failed; i++)
    failed = refuse(broker, &broker->members[i], code, text);
  broker->open = 0;
  return failed;
}
