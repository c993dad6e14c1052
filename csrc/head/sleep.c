#include "head/sleep.h"

/* Do all in the queue wait for nothing but others that are to join them? */
static int waits_for_others(const msi_broker *broker) {
  const msi_queue *queue = &broker->queue;
  int has_other = queue->timed || queue->full || queue->empty || broker->lease_queue.n ||
                  broker->changes.waiting.n || broker->shut;
  return broker->has_room && !has_other;
}

int msi_sleep_may(const msi_broker *broker, int64_t *until_ns) {
  if (broker->remote) return 0; /* who comes over rma cannot wake it */
  if (!broker->queue.n) return 1;
  if (!waits_for_others(broker)) return 0;
  int64_t since_ns = broker->round.waits_ns;
  if (!since_ns) since_ns = msi_queue_at(&broker->queue, 0)->taken_ns;
  int64_t due_ns = since_ns + broker->policy.max_delay_ns;
  if (!*until_ns || due_ns < *until_ns) *until_ns = due_ns;
  return 1;
}

uint32_t msi_sleep_missing(const msi_broker *broker) {
  const msi_queue *queue = &broker->queue;
  const msi_census *census = &broker->census;
  if (broker->round.waits_ns) return broker->round.missing;
  if (broker->policy.special == MSI_CACHED) return 1; /* what is kept waits for nobody */
  if (!queue->n || census->able <= census->asked) return 1;
  int64_t missing = census->able - census->asked;
  int64_t usual = (queue->rows + queue->n - 1) / queue->n; /* rows of a request */
  int64_t full = usual ? (broker->policy.alike_rows - queue->rows) / usual : 1;
  if (full > missing) full = missing;
  return full > 1 ? (uint32_t)full : 1;
}
