#include "head/empty.h"

#include "head/rounds.h"

/* Not inlined: there it would cost each request that fits 4 instructions. */
__attribute__((noinline)) int msi_empty_take(msi_broker *broker, const msi_entry *entry) {
  msi_lane *lane = &broker->inboxes[entry->inbox].lanes[entry->lane];
  if (entry->rows || !broker->description->allow_empty)
    return msi_broker_refuse(broker, entry, MPISERVE_EROWS,
                             "rows or dimensions do not fit the lane");
  msi_entry empty = *entry;
  empty.input_row = empty.output_row = MSI_IN_SLOT; /* or it would seem to use the first lease */
  broker->queue.empty = 1;
  msi_census_join(&broker->census, lane);
  int code = msi_queue_push(&broker->queue, empty);
  if (!code) msi_census_queue(&broker->census, lane);
  return code;
}

static int answer(msi_broker *broker, const msi_entry *entry) {
  msi_inbox *inbox = &broker->inboxes[entry->inbox];
  msi_census_unqueue(&broker->census, &inbox->lanes[entry->lane]);
  broker->counters.requests++;
  return msi_inbox_reply_empty(inbox, entry->lane, entry->sequence, broker->changes.generation);
}

/* In a round they have their turn, as all others. */
static int is_next(const msi_broker *broker, const msi_entry *e) {
  return e->in_round || !msi_rounds_are_on(broker);
}

/* Not inlined either: most services allow no such requests. */
__attribute__((noinline)) int msi_empty_answer(msi_broker *broker) {
  msi_queue *queue = &broker->queue;
  int code = MPISERVE_OK;
  queue->empty = 0;
  for (uint32_t i = 0; i < queue->n && !code;) {
    const msi_entry *e = msi_queue_at(queue, i);
    if (e->rows || !is_next(broker, e)) {
      queue->empty |= !e->rows;
      i++;
      continue;
    }
    msi_entry entry = msi_queue_remove(queue, i);
    code = answer(broker, &entry);
  }
  return code;
}
