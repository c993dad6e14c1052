#include "head/free_dims.h"

#include <string.h>

#include "base/error.h"

static const uint32_t *dims_of(const msi_inbox *inboxes, const msi_entry *e) {
  return msi_inbox_dims(&inboxes[e->inbox], e->lane, e->sequence);
}

int msi_free_dims_alike(const void *inboxes, const msi_entry *a, const msi_entry *b) {
  size_t n = (size_t)((const msi_inbox *)inboxes)->layout.inputs.n_free;
  return !n || !memcmp(dims_of(inboxes, a), dims_of(inboxes, b), n * sizeof(uint32_t));
}

/* ---- the tensors of a batch --------------------------------------------------------- */

static void gather(const msi_assembly *assembly, const msi_entry *m) {
  const msi_inbox *inbox = &assembly->inboxes[m->inbox];
  const msi_side *side = &assembly->inputs;
  const uint8_t *packed = msi_inbox_slot(inbox, m->lane, m->sequence)->input + side->dims_bytes;
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    const uint8_t *from =
        m->input_row == MSI_IN_SLOT ? packed : msi_inbox_input(inbox, i, m->input_row);
    memcpy(assembly->memory + assembly->inputs_at[i] + m->at * side->row_bytes[i], from, bytes);
    packed += bytes;
  }
}

/* A single request is read where it lies, and so may its results be written; several never lie side
 * by side, unless their dimensions are the largest. */
static void locate(msi_assembly *assembly, const msi_inbox *inbox, const msi_entry *first) {
  mpiserve_batch *batch = &assembly->batch;
  int alone = assembly->n == 1;
  batch->in_place = alone && first->input_row != MSI_IN_SLOT;
  for (int i = 0; i < inbox->layout.inputs.n; i++)
    batch->inputs[i] = batch->in_place ? msi_inbox_input(inbox, i, first->input_row)
                                       : assembly->memory + assembly->inputs_at[i];
  for (int i = 0; i < inbox->layout.outputs.n; i++)
    batch->outputs[i] = alone && first->output_row != MSI_IN_SLOT
                            ? msi_inbox_output(inbox, i, first->output_row)
                            : assembly->memory + assembly->outputs_at[i];
}

/* Until the caller says more, results are the largest. */
static void expect_largest(msi_assembly *assembly, const msi_side *outputs) {
  uint32_t *dims = assembly->result_dims;
  for (int i = 0; i < outputs->n; i++)
    for (int d = 0; d < outputs->specs[i].ndim; d++)
      if (msi_spec_is_free(&outputs->specs[i], d))
        *dims++ = (uint32_t)outputs->specs[i].max_shape[d];
  assembly->outputs = *outputs;
}

/* Not inlined: others would save registers for it; nor is the other one. */
__attribute__((noinline)) void msi_free_dims_lay_out(msi_assembly *assembly) {
  const msi_entry *first = &assembly->members[0];
  const msi_inbox *inbox = &assembly->inboxes[first->inbox];
  const uint32_t *dims = dims_of(assembly->inboxes, first);
  if (inbox->layout.inputs.n_free)
    memcpy(assembly->input_dims, dims, (size_t)inbox->layout.inputs.n_free * sizeof *dims);
  msi_side_of_dims(&inbox->layout.inputs, assembly->input_dims, &assembly->inputs);
  locate(assembly, inbox, first);
  for (uint32_t i = 0; i < assembly->n && !assembly->batch.in_place; i++)
    gather(assembly, &assembly->members[i]);
  expect_largest(assembly, &inbox->layout.outputs);
}

void msi_free_dims_get(const msi_assembly *assembly, int64_t *shapes) {
  const msi_side *side = &assembly->inboxes[0].layout.inputs;
  msi_side_shapes(side, assembly->batch.rows, assembly->input_dims, shapes);
}

/* ---- results --------------------------------------------------------------------- */

int msi_free_dims_set(msi_assembly *assembly, const char *service, const int64_t *shapes) {
  uint32_t dims[MPISERVE_MAX_FREE];
  const msi_side *side = &assembly->inboxes[0].layout.outputs;
  if (!msi_side_dims(side, shapes, dims))
    return msi_error(MPISERVE_ESHAPE,
                     "service '%s': the shape of a result does not fit the signature", service);
  memcpy(assembly->result_dims, dims, sizeof dims);
  msi_side_of_dims(side, dims, &assembly->outputs);
  return MPISERVE_OK;
}

__attribute__((noinline)) size_t msi_free_dims_scatter(const msi_assembly *assembly,
                                                       const msi_entry *m, msi_slot *slot,
                                                       const void *const *outputs) {
  const msi_inbox *inbox = &assembly->inboxes[m->inbox];
  const msi_side *side = &assembly->outputs;
  uint8_t *packed = slot->output + side->dims_bytes;
  int in_slot = m->output_row == MSI_IN_SLOT;
  memcpy(slot->output, assembly->result_dims, (size_t)side->n_free * sizeof(uint32_t));
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    const uint8_t *from = (const uint8_t *)outputs[i] + m->at * side->row_bytes[i];
    uint8_t *to = in_slot ? packed : msi_inbox_output(inbox, i, m->output_row);
    if (to != from) msi_copy(to, from, bytes);
    if (in_slot) packed += bytes;
  }
  return (size_t)(packed - slot->output);
}
