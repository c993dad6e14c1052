#include "head/refusal.h"

#include <stdio.h>

int msi_refuse_after_failure(msi_broker *broker, const msi_entry *entry) {
  char text[MPISERVE_TEXT_SIZE + 64];
  snprintf(text, sizeof text, "simulation rank %d ended with an error: %s", broker->failed_rank,
           broker->failed_text);
  return msi_broker_refuse(broker, entry, MPISERVE_EPEER, text);
}

int msi_refuse_for_room(msi_broker *broker, const msi_entry *entry) {
  char text[MPISERVE_TEXT_SIZE];
  snprintf(text, sizeof text,
           "service '%s': %lld rows wait already, max_queue_rows is %lld; ask again later, or "
           "raise it",
           broker->description->name, (long long)broker->queue.rows,
           (long long)broker->policy.queue_rows);
  broker->queue.full = 1;
  broker->counters.rejected++;
  return msi_broker_refuse(broker, entry, MPISERVE_EFULL, text);
}

int msi_refuse_piece(msi_broker *broker, const msi_entry *entry) {
  char text[MPISERVE_TEXT_SIZE];
  snprintf(
      text, sizeof text,
      "service '%s': a request of more than max_batch_rows = %lld rows is cut into pieces, but "
      "for its model rows belong together now; raise max_batch_rows",
      broker->description->name, (long long)broker->description->max_batch_rows);
  return msi_broker_refuse(broker, entry, MPISERVE_EROWS, text);
}
