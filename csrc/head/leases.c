#include "head/leases.h"

#include <stdio.h>

#include "base/error.h"

static const int64_t LEASE_LIMIT_NS = 10000000000;
static const int64_t LOOK_NS = 1000000000; /* counts at most of the time between two looks */

static int reply_lease(msi_broker *broker, const msi_entry *entry) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  msi_slot *slot;
  int code = msi_inbox_reply_begin(inbox, entry->lane, entry->sequence, &slot);
  if (code) return code;
  const msi_lane *lane = &inbox->lanes[entry->lane];
  slot->reply.lease_begin = lane->leases[entry->lease].begin;
  slot->reply.rows = lane->leases[entry->lease].rows;
  slot->reply.lease_once = msi_inbox_lease_once(inbox, lane->leases[entry->lease]);
  return msi_inbox_reply_end(inbox, entry->lane, entry->sequence, 0);
}

static void stall_begins(msi_broker *broker, int64_t now) {
  broker->lease_looked_ns = now;
  broker->lease_stalled_ns = 0;
}

/* Who waits for rows cannot ask until a batch gives some back: the census counts it as one that
 * has asked, or each batch would wait for its delay. */
static int await_rows(msi_broker *broker, const msi_entry *entry) {
  msi_lane *lane = &broker->inboxes[entry->inbox].lanes[entry->lane];
  int code = msi_queue_push(&broker->lease_queue, *entry);
  if (code) return code;
  if (broker->lease_queue.n == 1) stall_begins(broker, entry->taken_ns);
  if (!lane->active) lane->passing = 1; /* until its request says more */
  msi_census_attach(&broker->census, lane);
  msi_census_queue(&broker->census, lane);
  return MPISERVE_OK;
}

static msi_entry end_wait(msi_broker *broker) {
  msi_entry entry = msi_queue_pop(&broker->lease_queue);
  msi_census_unqueue(&broker->census, &broker->inboxes[entry.inbox].lanes[entry.lane]);
  return entry;
}

/* In turn, so that a large request is not passed for ever by small ones. */
int msi_leases_grant(msi_broker *broker) {
  int code = MPISERVE_OK;
  while (broker->lease_queue.n && !code) {
    msi_entry *first = msi_queue_at(&broker->lease_queue, 0);
    if (!msi_inbox_lease(&broker->inboxes[first->inbox], first->lane, first->lease, first->rows))
      break;
    msi_entry entry = end_wait(broker);
    broker->lease_stalled_ns = 0;
    code = reply_lease(broker, &entry);
  }
  return code;
}

/* Time counts while this rank looks and gives nobody rows. That of a long batch does not: the rows
 * of its requests are the model's, not those of a client that keeps them. */
static void count_stall(msi_broker *broker, int64_t now) {
  int64_t ns = now - broker->lease_looked_ns;
  broker->lease_looked_ns = now;
  broker->lease_stalled_ns += ns < LOOK_NS ? ns : LOOK_NS;
}

static int is_late(msi_broker *broker, int64_t now) {
  int64_t limit_ns =
      LEASE_LIMIT_NS + (broker->policy.special == MSI_IN_ROUNDS ? broker->policy.max_delay_ns : 0);
  return broker->lease_queue.n && broker->lease_stalled_ns > limit_ns &&
         now - msi_queue_at(&broker->lease_queue, 0)->taken_ns > limit_ns;
}

/* Rows that are missing may be with a client that is itself waiting, outside
 * this library, for the one that needs them: an error ends what would hang. Requests of a
 * reproducible service keep theirs for as long as they wait for others, too. */
int msi_leases_refuse_late(msi_broker *broker, int64_t now) {
  int code = MPISERVE_OK;
  if (broker->lease_queue.n) count_stall(broker, now);
  while (!code && is_late(broker, now)) {
    msi_entry entry = end_wait(broker);
    code = msi_broker_refuse(
        broker, &entry, MPISERVE_ENOMEM,
        "no memory for the payload came free for 10 s: other requests hold it. "
        "Raise the service's pool_bytes, or take results before waiting for other ranks");
    if (!code) code = msi_leases_grant(broker);
  }
  return code;
}

static int lies_in(const msi_entry *e, const msi_entry *by, const msi_range *range) {
  return e->inbox == by->inbox && e->lane == by->lane &&
         (e->input_row - range->begin < range->rows || e->output_row - range->begin < range->rows);
}

/* Rows of a request that waits or is held stay its lane's, whatever the client asks: its results
 * go there. */
int msi_leases_is_used(const msi_broker *broker, const msi_entry *by, int lease) {
  const msi_range *range = &broker->inboxes[by->inbox].lanes[by->lane].leases[lease];
  for (uint32_t i = 0; range->rows && i < broker->queue.n; i++)
    if (lies_in(msi_queue_at(&broker->queue, i), by, range)) return 1;
  for (uint32_t i = 0; broker->tickets.n && i < broker->tickets.used; i++)
    if (broker->tickets.entries[i].taken && lies_in(&broker->tickets.entries[i].entry, by, range))
      return 1;
  return 0;
}

static int lease_possible(const msi_broker *broker, const msi_entry *entry) {
  return entry->lease >= 0 && entry->lease < MSI_LEASES &&
         entry->rows <= broker->inboxes[entry->inbox].layout.max_rows &&
         !msi_leases_is_used(broker, entry, entry->lease);
}

static int refuse_buffer(msi_broker *broker, const msi_entry *entry, const msi_layout *layout) {
  char text[MPISERVE_TEXT_SIZE];
  const char *limit =
      layout->slab_rows < msi_layout_most_rows(layout) ? "pool_bytes" : "max_batch_rows";
  snprintf(text, sizeof text,
           "no room for a buffer of %u rows: give other buffers back, or raise the service's %s",
           entry->rows, limit);
  return msi_broker_refuse(broker, entry, MPISERVE_ENOMEM, text);
}

/* A buffer stays for as long as its user likes: it may not be lent, nor waited for. */
int msi_leases_keep(msi_broker *broker, const msi_entry *entry) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  if (!lease_possible(broker, entry))
    return msi_broker_refuse(broker, entry, MPISERVE_EROWS, "a buffer that cannot be given");
  int given = msi_inbox_lease(inbox, entry->lane, entry->lease, entry->rows);
  if (given && !msi_inbox_lease_once(inbox, inbox->lanes[entry->lane].leases[entry->lease]))
    return reply_lease(broker, entry);
  msi_inbox_lease_drop(inbox, entry->lane, entry->lease);
  return refuse_buffer(broker, entry, &inbox->layout);
}

int msi_leases_give(msi_broker *broker, const msi_entry *entry) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  if (!lease_possible(broker, entry))
    return msi_broker_refuse(broker, entry, MPISERVE_EROWS, "a lease that cannot be given");
  msi_inbox_lease_drop(inbox, entry->lane, entry->lease);
  int code = entry->rows ? await_rows(broker, entry) : reply_lease(broker, entry);
  return code ? code : msi_leases_grant(broker);
}

void msi_leases_rejoin(msi_broker *broker) {
  for (uint32_t i = 0; i < broker->lease_queue.n; i++) {
    const msi_entry *waiting = msi_queue_at(&broker->lease_queue, i);
    msi_census_join(&broker->census, &broker->inboxes[waiting->inbox].lanes[waiting->lane]);
  }
}
