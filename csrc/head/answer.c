#include "head/answer.h"

#include "head/timing.h"

int msi_answer(msi_broker *broker, const msi_entry *m, const msi_origin *origin, msi_slot *slot,
               size_t bytes, int64_t now) {
  slot->reply.generation = broker->changes.generation;
  slot->reply.rows = origin->rows;
  slot->reply.requests = origin->requests;
  slot->reply.waiting_rows = (uint32_t)broker->queue.rows;
  slot->reply.queue_ns = origin->closed_ns - m->taken_ns;
  slot->reply.compute_ns = now - origin->closed_ns;
  broker->counters.requests++;
  broker->counters.rows += m->rows;
  if (MSI_PROFILED) msi_timing_reply(broker, m, origin, slot, now);
  return msi_inbox_reply_end(&broker->inboxes[m->inbox], m->lane, m->sequence, bytes);
}
