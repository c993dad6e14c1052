#include "base/forward.h"

#include <stdio.h>

static const int64_t PATIENCE_NS = 100000000;

static int locate(const msi_forward *forward, const void *tensor, msi_place *place) {
  /* Unsigned: an address before the memory is far behind it. */
  uintptr_t offset = (uintptr_t)tensor - (uintptr_t)forward->begin;
  *place = (msi_place){forward->memory, offset};
  return offset < forward->bytes;
}

static int locate_all(const msi_forward *forward, const void *const *inputs, void *const *outputs) {
  msi_place *place = forward->parent->shared->place;
  for (int i = 0; i < forward->inputs; i++)
    if (!locate(forward, inputs[i], place++)) return 0;
  for (int i = 0; i < forward->outputs; i++)
    if (!locate(forward, outputs[i], place++)) return 0;
  *place = forward->last;
  return 1;
}

static void leave_open(msi_forward *forward, int found, int64_t posted_ns) {
  forward->is_open = 1;
  forward->found = found;
  forward->posted_ns = posted_ns;
}

int msi_forward_run(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
                    char *text, size_t bytes) {
  msi_forward *forward = state;
  msi_handover *shared = forward->parent->shared;
  if (forward->is_open || !locate_all(forward, inputs, outputs)) {
    snprintf(text, bytes,
             "the batch is not in memory that the model's process maps, or another is open");
    return 1;
  }
  shared->operation = forward->operation;
  shared->places = (uint32_t)(forward->inputs + forward->outputs + 1);
  shared->rows = rows;
  shared->size = 0;
  int64_t posted_ns = msi_now();
  msi_handover_post(forward->parent);
  int found = msi_handover_wait(forward->parent, posted_ns + PATIENCE_NS, forward->pidfd);
  if (found == MSI_HANDOVER_ENDED && !shared->code && !shared->answer_size) return 0;
  leave_open(forward, found, posted_ns);
  snprintf(text, bytes, "the batch has not just ended");
  return 1;
}
