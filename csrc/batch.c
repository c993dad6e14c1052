#include "batch.h"

#include <stdlib.h>

#include "error.h"

int msi_queue_open(msi_queue *queue) {
  *queue = (msi_queue){.capacity = 64};
  queue->entries = malloc(queue->capacity * sizeof *queue->entries);
  return queue->entries ? MPISERVE_OK : msi_error(MPISERVE_ENOMEM, "no memory for the queue");
}

void msi_queue_close(msi_queue *queue) {
  free(queue->entries);
  *queue = (msi_queue){0};
}

msi_entry *msi_queue_at(const msi_queue *queue, uint32_t i) {
  return &queue->entries[(queue->first + i) & (queue->capacity - 1)];
}

static int grow(msi_queue *queue) {
  msi_entry *entries = malloc(2 * queue->capacity * sizeof *entries);
  if (!entries) return msi_error(MPISERVE_ENOMEM, "no memory for %u waiting requests", queue->n);
  for (uint32_t i = 0; i < queue->n; i++) entries[i] = *msi_queue_at(queue, i);
  free(queue->entries);
  queue->entries = entries;
  queue->first = 0;
  queue->capacity *= 2;
  return MPISERVE_OK;
}

int msi_queue_push(msi_queue *queue, msi_entry entry) {
  if (queue->n == queue->capacity) {
    int code = grow(queue);
    if (code) return code;
  }
  *msi_queue_at(queue, queue->n++) = entry;
  queue->rows += entry.rows;
  return MPISERVE_OK;
}

msi_entry msi_queue_pop(msi_queue *queue) {
  msi_entry entry = *msi_queue_at(queue, 0);
  queue->first = (queue->first + 1) & (queue->capacity - 1);
  queue->n--;
  queue->rows -= entry.rows;
  return entry;
}

msi_close_reason msi_batch_decide(const msi_policy *policy, const msi_queue *queue, uint32_t asked,
                                  uint32_t able, int64_t now_ns) {
  if (!queue->n) return MSI_OPEN;
  if (queue->rows >= policy->max_rows) return MSI_CLOSED_ROWS;
  if (asked >= able) return MSI_CLOSED_CENSUS;
  if (now_ns - msi_queue_at(queue, 0)->taken_ns >= policy->max_delay_ns) return MSI_CLOSED_DELAY;
  return MSI_OPEN;
}

uint32_t msi_batch_fit(const msi_policy *policy, const msi_queue *queue, int64_t *rows) {
  uint32_t n = 0;
  *rows = 0;
  while (n < queue->n && *rows + msi_queue_at(queue, n)->rows <= policy->max_rows)
    *rows += msi_queue_at(queue, n++)->rows;
  return n;
}
