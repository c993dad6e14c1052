#include "head/change_queue.h"

#include <string.h>

#include "base/error.h"

int msi_change_queue_open(msi_change_queue *queue, msi_inbox *inboxes) {
  *queue = (msi_change_queue){.inboxes = inboxes, .generation = 1};
  return msi_queue_open(&queue->waiting);
}

void msi_change_queue_close(msi_change_queue *queue) { msi_queue_close(&queue->waiting); }

int msi_change_queue_push(msi_change_queue *queue, const msi_entry *entry) {
  if (entry->lease >= MPISERVE_LOAD && entry->lease <= MPISERVE_REPLACE)
    return msi_queue_push(&queue->waiting, *entry);
  return msi_inbox_reply(&queue->inboxes[entry->inbox], entry->lane, entry->sequence, MPISERVE_EARG,
                         "a change of unknown kind");
}

int msi_change_queue_has_news(msi_change_queue *queue) {
  return !queue->is_known && (queue->is_known = 1);
}

int msi_change_queue_pauses(const msi_change_queue *queue) {
  int what = msi_queue_at(&queue->waiting, 0)->lease;
  return what == MPISERVE_SWAP || what == MPISERVE_UNLOAD;
}

int msi_change_queue_starts(const msi_change_queue *queue) {
  for (uint32_t i = 0; i < queue->waiting.n; i++) {
    int what = msi_queue_at(&queue->waiting, i)->lease;
    if (what == MPISERVE_START || what == MPISERVE_REPLACE) return 1;
  }
  return 0;
}

static int none(void) { return msi_error(MPISERVE_ESTATE, "no client asks for a change"); }

int msi_change_queue_get(const msi_change_queue *queue, mpiserve_change_request *change) {
  if (!queue->waiting.n) return none();
  const msi_entry *first = msi_queue_at(&queue->waiting, 0);
  const msi_inbox *inbox = &queue->inboxes[first->inbox];
  const msi_slot *slot = msi_inbox_slot(inbox, first->lane, first->sequence);
  size_t bytes = first->rows; /* of the copy: the slot may have changed */
  *change = (mpiserve_change_request){.what = first->lease, .client = inbox->clients[first->lane]};
  memcpy(change->version, slot->input, bytes < MPISERVE_NAME_SIZE ? bytes : MPISERVE_NAME_SIZE - 1);
  return MPISERVE_OK;
}

int msi_change_queue_reply(msi_change_queue *queue, int code, const char *text) {
  if (!queue->waiting.n) return none();
  msi_entry first = msi_queue_pop(&queue->waiting);
  queue->is_known = 0;
  queue->generation += first.lease == MPISERVE_SWAP && !code; /* 0 follows 65535 */
  return msi_inbox_reply(&queue->inboxes[first.inbox], first.lane, first.sequence, code, text);
}
