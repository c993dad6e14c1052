#include "head/loss.h"

#include "head/leases.h"
#include "mpi/failure.h"

static int is_of(const msi_entry *entry, const msi_inbox *inbox, uint32_t lane) {
  return entry->inbox == inbox->transport->number && entry->lane == lane;
}

/* Both requests that wait for a batch and those that wait for rows count in the census. */
static int64_t forget(msi_broker *broker, msi_queue *queue, msi_inbox *inbox, uint32_t lane) {
  int64_t n = 0;
  for (uint32_t i = 0; i < queue->n;) {
    if (!is_of(msi_queue_at(queue, i), inbox, lane)) {
      i++;
      continue;
    }
    msi_queue_remove(queue, i);
    msi_census_unqueue(&broker->census, &inbox->lanes[lane]);
    n++;
  }
  return n;
}

/* The worker ends a held request when it asks whether that is still wanted. */
static void cancel_held(msi_broker *broker, msi_inbox *inbox, uint32_t lane) {
  for (uint32_t i = 0; broker->tickets.n && i < broker->tickets.used; i++) {
    const msi_ticket *held = &broker->tickets.entries[i];
    if (!held->taken || !is_of(&held->entry, inbox, lane)) continue;
    msi_slot *slot = msi_inbox_slot(inbox, lane, held->entry.sequence);
    atomic_store_explicit(&slot->request.cancelled, 1, memory_order_relaxed);
  }
}

/* Rows of held requests stay taken until these have ended: their results go there. Those that a
 * request still waits for come later. */
static void free_rows(msi_broker *broker, msi_inbox *inbox, uint32_t lane, int n) {
  const msi_entry any = {.inbox = (uint8_t)inbox->transport->number, .lane = lane};
  for (int i = 0; i < n; i++) {
    int is_used = msi_leases_is_used(broker, &any, i);
    if (!is_used) msi_inbox_lease_drop(inbox, lane, i);
    broker->dead_rows |= is_used;
  }
  broker->dead_rows |= inbox->lanes[lane].queued != 0;
}

static void uncount(msi_broker *broker, msi_lane *lane) {
  msi_census_uncount(&broker->census, lane);
  *(lane->guest ? &broker->guests : &broker->remaining) -= !lane->gone;
  lane->gone = 1;
}

static void bury(msi_broker *broker, msi_inbox *inbox, uint32_t lane) {
  int64_t n = forget(broker, &broker->queue, inbox, lane);
  broker->counters.cancelled += n;
  broker->counters.requests += n;
  broker->counters.errors += n;
  forget(broker, &broker->lease_queue, inbox, lane);
  cancel_held(broker, inbox, lane);
  uncount(broker, &inbox->lanes[lane]);
  msi_inbox_shut(inbox, lane);
}

/* Buffers that were not given back stay the client's: it may look at them after close. What it has
 * in the queue was cancelled, and ends with the next batch. */
int msi_loss_of_leaver(msi_broker *broker, msi_inbox *inbox, uint32_t lane) {
  uncount(broker, &inbox->lanes[lane]);
  free_rows(broker, inbox, lane, MSI_SLOTS);
  return msi_leases_grant(broker);
}

/* Those that are buried already, and those that have left, may have had rows of held requests. */
static void see_to(msi_broker *broker, msi_inbox *inbox, uint32_t lane) {
  int is_dead = msi_failure_is_dead(broker->world, inbox->clients[lane]);
  if (is_dead && !msi_inbox_is_shut(inbox, lane)) bury(broker, inbox, lane);
  if (is_dead || inbox->lanes[lane].gone)
    free_rows(broker, inbox, lane, is_dead ? MSI_LEASES : MSI_SLOTS);
}

int msi_loss_of_clients(msi_broker *broker) {
  broker->dead_rows = 0;
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    msi_inbox *inbox = &broker->inboxes[t];
    for (uint32_t lane = 0; lane < inbox->layout.lanes; lane++) see_to(broker, inbox, lane);
  }
  return msi_leases_grant(broker);
}
