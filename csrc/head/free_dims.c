#include "head/free_dims.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static const uint32_t *dims_of(const msi_inbox *inboxes, const msi_entry *e) {
  return msi_inbox_dims(&inboxes[e->inbox], e->lane, e->sequence);
}

int msi_free_dims_alike(const void *inboxes, const msi_entry *a, const msi_entry *b) {
  size_t n = (size_t)((const msi_inbox *)inboxes)->layout.inputs.n_free;
  return !n || !memcmp(dims_of(inboxes, a), dims_of(inboxes, b), n * sizeof(uint32_t));
}

static int is_ragged(const msi_assembly *assembly) { return assembly->inboxes[0].layout.is_ragged; }

int msi_free_dims_open(msi_assembly *assembly) {
  const msi_layout *layout = &assembly->inboxes[0].layout;
  if (!msi_layout_is_free(layout)) return MPISERVE_OK;
  size_t rows = layout->is_ragged ? (size_t)layout->batch_rows : 1;
  assembly->result_dims = calloc(rows * MPISERVE_MAX_FREE, sizeof *assembly->result_dims);
  if (assembly->result_dims) return MPISERVE_OK;
  return msi_error(MPISERVE_ENOMEM, "no memory for the dimensions of %zu results", rows);
}

/* Those of the results of a member. */
static uint32_t *result_dims(const msi_assembly *assembly, uint32_t at) {
  return assembly->result_dims + (is_ragged(assembly) ? at * (size_t)MPISERVE_MAX_FREE : 0);
}

/* ---- the tensors of a batch --------------------------------------------------------- */

/* The bytes of its inputs; before it in the batch lie at rows of as many, or of the largest. */
static const msi_side *inputs_of(const msi_assembly *assembly, const msi_entry *m, msi_side *own) {
  if (!is_ragged(assembly)) return &assembly->inputs;
  msi_side_of_dims(&assembly->inboxes[0].layout.inputs, dims_of(assembly->inboxes, m), own);
  return own;
}

static void gather(const msi_assembly *assembly, const msi_entry *m) {
  msi_side own;
  const msi_inbox *inbox = &assembly->inboxes[m->inbox];
  const msi_side *side = inputs_of(assembly, m, &own);
  const size_t *row = is_ragged(assembly) ? inbox->layout.inputs.row_bytes : side->row_bytes;
  const uint8_t *packed = msi_inbox_slot(inbox, m->lane, m->sequence)->input + side->dims_bytes;
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    const uint8_t *from =
        m->input_row == MSI_IN_SLOT ? packed : msi_inbox_input(inbox, i, m->input_row);
    memcpy(assembly->memory + assembly->inputs_at[i] + m->at * row[i], from, bytes);
    packed += bytes;
  }
}

/* A single request is read where it lies, and so may its results be written; several never lie side
 * by side, unless their dimensions are the largest. */
static void locate(msi_assembly *assembly, const msi_inbox *inbox, const msi_entry *first) {
  mpiserve_batch *batch = &assembly->batch;
  int alone = assembly->n == 1 && !assembly->gathers[first->inbox];
  batch->in_place = alone && first->input_row != MSI_IN_SLOT;
  for (int i = 0; i < inbox->layout.inputs.n; i++)
    batch->inputs[i] = batch->in_place ? msi_inbox_input(inbox, i, first->input_row)
                                       : assembly->memory + assembly->inputs_at[i];
  for (int i = 0; i < inbox->layout.outputs.n; i++)
    batch->outputs[i] = alone && first->output_row != MSI_IN_SLOT
                            ? msi_inbox_output(inbox, i, first->output_row)
                            : assembly->memory + assembly->outputs_at[i];
}

static void set_largest(const msi_side *outputs, uint32_t *dims) {
  for (int i = 0; i < outputs->n; i++)
    for (int d = 0; d < outputs->specs[i].ndim; d++)
      if (msi_spec_is_free(&outputs->specs[i], d))
        *dims++ = (uint32_t)outputs->specs[i].max_shape[d];
}

/* Until the caller says more, results are the largest. */
static void expect_largest(msi_assembly *assembly, const msi_side *outputs) {
  uint32_t n = is_ragged(assembly) ? assembly->n : 1;
  for (uint32_t at = 0; at < n; at++) set_largest(outputs, result_dims(assembly, at));
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
  if (!is_ragged(assembly)) {
    msi_side_shapes(side, assembly->batch.rows, assembly->input_dims, shapes);
    return;
  }
  for (uint32_t i = 0; i < assembly->n; i++) {
    const msi_entry *m = &assembly->members[i];
    size_t row = m->at * (size_t)side->n * MPISERVE_MAX_DIMS;
    msi_side_shapes(side, 1, dims_of(assembly->inboxes, m), shapes + row);
  }
}

/* ---- results --------------------------------------------------------------------- */

static int does_not_fit(const char *service) {
  return msi_error(MPISERVE_ESHAPE,
                   "service '%s': the shape of a result does not fit the signature", service);
}

int msi_free_dims_set(msi_assembly *assembly, const char *service, int64_t rows,
                      const int64_t *shapes) {
  const msi_layout *layout = &assembly->inboxes[0].layout;
  const msi_side *side = &layout->outputs;
  size_t row = (size_t)side->n * MPISERVE_MAX_DIMS;
  uint32_t dims[MPISERVE_MAX_FREE];
  if (rows < 1 || rows > (layout->is_ragged ? layout->batch_rows : 1))
    return msi_error(MPISERVE_EARG, "service '%s': shapes of %lld rows", service, (long long)rows);
  for (int64_t r = 0; r < rows; r++)
    if (!msi_side_dims(side, shapes + (size_t)r * row, dims)) return does_not_fit(service);
  if (!msi_layout_is_free(layout)) return MPISERVE_OK;
  for (int64_t r = 0; r < rows; r++)
    msi_side_dims(side, shapes + (size_t)r * row, result_dims(assembly, (uint32_t)r));
  if (!layout->is_ragged) msi_side_of_dims(side, dims, &assembly->outputs);
  return MPISERVE_OK;
}

__attribute__((noinline)) size_t msi_free_dims_scatter(const msi_assembly *assembly,
                                                       const msi_entry *m, msi_slot *slot,
                                                       const void *const *outputs) {
  const msi_inbox *inbox = &assembly->inboxes[m->inbox];
  const uint32_t *dims = result_dims(assembly, m->at);
  const msi_side *side = &assembly->outputs;
  const size_t *row = side->row_bytes; /* of the largest, if it is ragged */
  msi_side own;
  if (is_ragged(assembly)) {
    msi_side_of_dims(side, dims, &own);
    side = &own;
  }
  uint8_t *begin = msi_slot_outputs(&inbox->layout, slot), *packed = begin + side->dims_bytes;
  int in_slot = m->output_row == MSI_IN_SLOT;
  memcpy(begin, dims, (size_t)side->n_free * sizeof(uint32_t));
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    const uint8_t *from = (const uint8_t *)outputs[i] + m->at * row[i];
    uint8_t *to = in_slot ? packed : msi_inbox_output(inbox, i, m->output_row);
    if (to != from) msi_copy(to, from, bytes);
    if (in_slot) packed += bytes;
  }
  return (size_t)(packed - slot->output);
}
