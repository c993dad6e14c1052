#include "head/assembly.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "head/cached_rows.h"
#include "head/fit.h"
#include "head/free_dims.h"

/* Grows to the largest batch that ever was, by doubling: then never again. */
static int reserve_members(msi_assembly *assembly, uint32_t n) {
  if (n <= assembly->capacity) return MPISERVE_OK;
  msi_entry *members = realloc(assembly->members, 2 * n * sizeof *members);
  if (!members) return msi_error(MPISERVE_ENOMEM, "no memory for a batch of %u requests", n);
  assembly->members = members;
  assembly->capacity = 2 * n;
  return MPISERVE_OK;
}

int msi_assembly_open(msi_assembly *assembly, msi_inbox *inboxes, size_t *bytes) {
  const msi_layout *layout = &inboxes[0].layout; /* rows are alike over all transports */
  uint32_t rows = (uint32_t)layout->batch_rows;
  *assembly = (msi_assembly){.inboxes = inboxes, .special = msi_layout_is_free(layout)};
  size_t at = msi_side_lay_out(&layout->inputs, rows, *bytes, assembly->inputs_at);
  at = msi_side_lay_out(&layout->outputs, rows, msi_pages(at), assembly->outputs_at);
  *bytes = assembly->end = msi_pages(at);
  int code = reserve_members(assembly, 32);
  return code ? code : msi_free_dims_open(assembly);
}

void msi_assembly_close(msi_assembly *assembly) {
  free(assembly->members);
  free(assembly->result_dims);
}

static mpiserve_range range_of(const msi_segment *segment, const uint8_t *memory, size_t begin,
                               size_t end) {
  return (mpiserve_range){memory + begin - segment->memory, (int64_t)(end - begin)};
}

/* What lies in a window of MPI is not in the segment. */
int msi_assembly_outputs(const msi_assembly *assembly, const msi_segment *segment,
                         mpiserve_range *ranges) {
  int n = 0;
  ranges[n++] = range_of(segment, assembly->memory, assembly->outputs_at[0], assembly->end);
  for (int t = 0; t < MSI_TRANSPORTS; t++) {
    const uint8_t *memory = assembly->inboxes[t].memory;
    const msi_layout *layout = &assembly->inboxes[t].layout;
    if (!layout->lanes || !assembly->inboxes[t].in_segment) continue;
    ranges[n++] =
        range_of(segment, memory, layout->outputs_at[0], layout->header_at + layout->bytes);
  }
  return n;
}

void msi_assembly_gather(msi_assembly *assembly, int all, int windows) {
  for (int t = 0; t < MSI_TRANSPORTS; t++)
    assembly->gathers[t] = all || (windows && !assembly->inboxes[t].in_segment);
}

int msi_assembly_begin(msi_assembly *assembly, uint32_t n) {
  assembly->n = 0;
  assembly->batch.rows = 0;
  return reserve_members(assembly, n);
}

void msi_assembly_add(msi_assembly *assembly, const msi_entry *entry) {
  msi_entry *member = &assembly->members[assembly->n++];
  *member = *entry;
  member->at = (uint32_t)assembly->batch.rows;
  member->answered = 0;
  assembly->batch.rows += entry->rows;
}

/* ---- in place ------------------------------------------------------------------ */

static int reads(const msi_lane *lane, const msi_entry *m) {
  for (int i = 0; i < lane->n_read; i++) {
    const msi_range *other = &lane->read[i];
    if (other->begin < m->input_row + m->rows && m->input_row < other->begin + other->rows)
      return 1;
  }
  return 0;
}

/* Is each row read by one request? Leases of two lanes never overlap, but requests of one lane
 * may name the same rows of a buffer. */
static int disjoint(msi_assembly *assembly) {
  assembly->round++;
  for (uint32_t i = 0; i < assembly->n; i++) {
    const msi_entry *m = &assembly->members[i];
    msi_lane *lane = &assembly->inboxes[m->inbox].lanes[m->lane];
    if (lane->round != assembly->round) lane->n_read = 0;
    lane->round = assembly->round;
    if (lane->n_read == MSI_SLOTS || reads(lane, m)) return 0;
    lane->read[lane->n_read++] = (msi_range){m->input_row, m->rows};
  }
  return 1;
}

/* Do the inputs cover one range of the slabs, without a gap and each row once? */
static int one_range(msi_assembly *assembly, uint32_t *begin) {
  uint32_t first = UINT32_MAX, end = 0;
  if (assembly->gathers[assembly->members[0].inbox]) return 0;
  for (uint32_t i = 0; i < assembly->n; i++) {
    const msi_entry *m = &assembly->members[i];
    if (m->input_row == MSI_IN_SLOT || m->inbox != assembly->members[0].inbox) return 0;
    if (m->input_row < first) first = m->input_row;
    if (m->input_row + m->rows > end) end = m->input_row + m->rows;
  }
  *begin = first;
  return end - first == assembly->batch.rows && (assembly->n == 1 || disjoint(assembly));
}

/* Do the outputs lie in the slabs in the order of the batch? */
static int same_order(const msi_assembly *assembly, uint32_t *begin) {
  const msi_entry *first = &assembly->members[0];
  *begin = first->output_row - first->at;
  if (assembly->gathers[first->inbox]) return 0;
  for (uint32_t i = 0; i < assembly->n; i++) {
    const msi_entry *m = &assembly->members[i];
    if (m->output_row == MSI_IN_SLOT || m->inbox != first->inbox) return 0;
    if (m->output_row - m->at != *begin) return 0;
  }
  return 1;
}

/* ---- gathered -------------------------------------------------------------------- */

static void gather_member(msi_assembly *assembly, const msi_entry *m) {
  const msi_inbox *inbox = &assembly->inboxes[m->inbox];
  const msi_side *side = &inbox->layout.inputs;
  const uint8_t *packed = msi_inbox_slot(inbox, m->lane, m->sequence)->input;
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    uint8_t *gathered = assembly->memory + assembly->inputs_at[i];
    memcpy(gathered + m->at * side->row_bytes[i], msi_fit_input(inbox, m, i, packed), bytes);
    packed += bytes;
  }
}

static void lay_out_inputs(msi_assembly *assembly, const msi_inbox *inbox) {
  const msi_side *side = &inbox->layout.inputs;
  uint32_t begin;
  assembly->batch.in_place = one_range(assembly, &begin);
  if (assembly->batch.in_place) {
    for (uint32_t i = 0; i < assembly->n; i++)
      assembly->members[i].at = assembly->members[i].input_row - begin;
    for (int i = 0; i < side->n; i++) assembly->batch.inputs[i] = msi_inbox_input(inbox, i, begin);
    return;
  }
  for (uint32_t i = 0; i < assembly->n; i++) gather_member(assembly, &assembly->members[i]);
  for (int i = 0; i < side->n; i++)
    assembly->batch.inputs[i] = assembly->memory + assembly->inputs_at[i];
}

static void lay_out_outputs(msi_assembly *assembly, const msi_inbox *inbox) {
  const msi_side *side = &inbox->layout.outputs;
  uint32_t begin;
  if (same_order(assembly, &begin)) {
    for (int i = 0; i < side->n; i++)
      assembly->batch.outputs[i] = msi_inbox_output(inbox, i, begin);
    return;
  }
  for (int i = 0; i < side->n; i++)
    assembly->batch.outputs[i] = assembly->memory + assembly->outputs_at[i];
}

static void lay_out_specially(msi_assembly *assembly) {
  if (assembly->cached)
    msi_cached_lay_out(assembly);
  else
    msi_free_dims_lay_out(assembly);
}

void msi_assembly_lay_out(msi_assembly *assembly) {
  const msi_inbox *inbox = &assembly->inboxes[assembly->members[0].inbox];
  assembly->batch.requests = (int32_t)assembly->n;
  if (assembly->special) {
    lay_out_specially(assembly);
    return;
  }
  lay_out_inputs(assembly, inbox);
  lay_out_outputs(assembly, inbox);
}

/* ---- results --------------------------------------------------------------------- */

static size_t scatter_specially(msi_assembly *assembly, const msi_entry *m, msi_slot *slot,
                                const void *const *outputs) {
  return assembly->cached ? msi_cached_scatter(assembly, m, slot, outputs)
                          : msi_free_dims_scatter(assembly, m, slot, outputs);
}

size_t msi_assembly_scatter(msi_assembly *assembly, const msi_entry *m, msi_slot *slot,
                            const void *const *outputs) {
  const msi_inbox *inbox = &assembly->inboxes[m->inbox];
  const msi_side *side = &inbox->layout.outputs;
  if (assembly->special) return scatter_specially(assembly, m, slot, outputs);
  uint8_t *packed = msi_slot_outputs(&inbox->layout, slot);
  for (int i = 0; i < side->n; i++) {
    size_t bytes = m->rows * side->row_bytes[i];
    const uint8_t *from = (const uint8_t *)outputs[i] + m->at * side->row_bytes[i];
    int in_slot = m->output_row == MSI_IN_SLOT;
    uint8_t *to = in_slot ? packed : msi_inbox_output(inbox, i, m->output_row);
    if (to != from) msi_copy(to, from, bytes);
    if (in_slot) packed += bytes;
  }
  return (size_t)(packed - slot->output);
}
