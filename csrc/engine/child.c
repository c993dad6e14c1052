#include "engine/child.h"

#include "engine/chunks.h"

/* ---- the parent ---- */

static int place_of(const msi_child_parent *parent, const void *data, size_t bytes,
                    msi_place *place) {
  uintptr_t begin = (uintptr_t)parent->memory.inputs, at = (uintptr_t)data;
  if (at < begin || bytes > parent->memory.bytes || at - begin > parent->memory.bytes - bytes)
    return 0;
  *place = (msi_place){parent->number, at - begin};
  return 1;
}

static int write_places(const msi_child_parent *parent, int64_t rows, const void *const *inputs,
                        void *const *outputs) {
  const msi_child_tensors *t = &parent->tensors;
  msi_handover *shared = parent->side->shared;
  int n = t->n_inputs + t->n_outputs;
  for (int i = 0; i < n; i++) {
    const void *data = i < t->n_inputs ? inputs[i] : outputs[i - t->n_inputs];
    if (!place_of(parent, data, (size_t)rows * t->row_bytes[i], &shared->place[i])) return 0;
  }
  shared->place[n] = parent->clients;
  shared->places = (uint32_t)n + 1;
  return 1;
}

int msi_child_hand_over(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
                        char *text, size_t bytes) {
  msi_child_parent *parent = state;
  msi_handover *shared = parent->side->shared;
  int found;
  (void)text, (void)bytes;
  if (parent->posted_ns || !write_places(parent, rows, inputs, outputs)) return 1;
  shared->operation = parent->operation;
  shared->rows = rows;
  shared->size = 0;
  int64_t now = msi_now();
  msi_handover_post(parent->side);
  do {
    found = msi_handover_wait(parent->side, now + parent->patience_ns, parent->pidfd);
  } while (found == MSI_HANDOVER_ROWS); /* nobody can have rows early here */
  if (found == MSI_HANDOVER_ENDED && !shared->code && !shared->answer_size) return 0;
  parent->found = found;
  parent->posted_ns = now;
  return 1;
}

/* ---- the child ---- */

/* Where a tensor of the call lies here; NULL: the place is none that the engine may use. */
static const msi_child_memory *memory_of(const msi_child *child, const msi_place *place,
                                         size_t bytes) {
  if (place->memory >= child->n_memories) return NULL;
  const msi_child_memory *memory = &child->memories[place->memory];
  int inside = bytes <= memory->bytes && place->offset <= memory->bytes - bytes;
  return inside ? memory : NULL;
}

static int find(const msi_child *child, const void **inputs, void **outputs) {
  const msi_handover *shared = child->side->shared;
  const msi_child_tensors *t = &child->tensors;
  int n = t->n_inputs + t->n_outputs;
  if (shared->rows < 1 || shared->places < (uint32_t)n) return 0;
  for (int i = 0; i < n; i++) {
    const msi_place *place = &shared->place[i];
    const msi_child_memory *memory =
        memory_of(child, place, (size_t)shared->rows * t->row_bytes[i]);
    if (!memory) return 0;
    if (i < t->n_inputs)
      inputs[i] = memory->inputs + place->offset;
    else
      outputs[i - t->n_inputs] = memory->outputs + place->offset;
  }
  return 1;
}

/* Answers the call that was taken; 0: it is the caller's. */
static int answer(msi_child *child) {
  const msi_child_tensors *t = &child->tensors;
  const void *inputs[MPISERVE_MAX_TENSORS];
  void *outputs[MPISERVE_MAX_TENSORS];
  char text[MPISERVE_TEXT_SIZE];
  if (!child->engine || child->side->shared->operation != child->operation) return 0;
  if (!find(child, inputs, outputs)) return 0;
  if (msi_engine_run_chunks(child->engine, child->side->shared->rows, inputs, outputs, t->n_inputs,
                            t->n_outputs, t->row_bytes, t->row_bytes + t->n_inputs, text,
                            sizeof text))
    return 0;
  msi_handover_end(child->side, 0, 0);
  return 1;
}

int msi_child_next(msi_child *child, int64_t deadline) {
  while (msi_handover_next(child->side, deadline)) {
    if (!answer(child)) return 1;
    if (msi_now() >= deadline) return 0;
  }
  return 0;
}
