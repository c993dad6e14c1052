#include "engine/child.h"

#include "engine/chunks.h"

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
  const msi_handover *shared = child->side->shared;
  /* A message has shapes, which engines do not know. */
  if (!child->engine || shared->operation != child->operation || shared->size) return 0;
  if (!find(child, inputs, outputs)) return 0;
  if (msi_engine_run_chunks(child->engine, shared->rows, inputs, outputs, t->n_inputs, t->n_outputs,
                            t->row_bytes, t->row_bytes + t->n_inputs, text, sizeof text))
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
