/* assembly: the rows of a batch as the model sees them, one contiguous tensor per
 * input and output: views of the slabs where its requests lie side by side, copies
 * where they don't. No MPI calls. */
#ifndef MSI_ASSEMBLY_H
#define MSI_ASSEMBLY_H

#include "base/segment.h"
#include "head/batch.h"
#include "head/inbox.h"

struct msi_cached;

typedef struct msi_assembly {
  msi_inbox *inboxes; /* by transport */
  msi_entry *members;
  uint32_t n, capacity;
  uint32_t round; /* counts the looks for rows that are read twice */
  mpiserve_batch batch;
  uint8_t *memory; /* of this rank alone, with room for a batch that is gathered, at: */
  size_t inputs_at[MPISERVE_MAX_TENSORS], outputs_at[MPISERVE_MAX_TENSORS];
  int gathers[MSI_TRANSPORTS]; /* by inbox: its rows, even if they lie side by side */
  size_t end;                  /* of the outputs, which have pages of their own */
  /* With free dimensions: those of this batch, and of its results, and the bytes of their rows. If
   * requests of a batch have dimensions of their own, only the results', row by row. */
  uint32_t input_dims[MPISERVE_MAX_FREE], *result_dims;
  msi_side inputs, outputs;
  struct msi_cached *cached; /* what it keeps; NULL: nothing */
  int special;               /* either of these two */
} msi_assembly;

/* The inboxes are open. Adds the room for a gathered batch to that of the services before it; the
 * memory comes with msi_assembly_attach(). Local. */
int msi_assembly_open(msi_assembly *assembly, msi_inbox *inboxes, size_t *bytes);
static inline void msi_assembly_attach(msi_assembly *assembly, uint8_t *memory) {
  assembly->memory = memory;
}
void msi_assembly_close(msi_assembly *assembly);

/* Finds what a model may write to in this memory of the rank: the outputs of its service. Fills up
 * to MPISERVE_OUTPUT_RANGES ranges and returns how many. */
int msi_assembly_outputs(const msi_assembly *assembly, const msi_segment *segment,
                         mpiserve_range *ranges);

/* Gathers rows from everywhere, so that the model sees its tensors at the same addresses in each
 * batch; or those in windows of MPI, which no other process maps. */
void msi_assembly_gather(msi_assembly *assembly, int all, int windows);

/* Begins a batch of up to n members. */
int msi_assembly_begin(msi_assembly *assembly, uint32_t n);
void msi_assembly_add(msi_assembly *assembly, const msi_entry *entry);

/* Finds or makes the tensors of the batch. */
void msi_assembly_lay_out(msi_assembly *assembly);

/* Brings the results of a member to where its client looks for them, and tells how
 * many bytes of its slot they take. outputs are the tensors of the batch. */
size_t msi_assembly_scatter(msi_assembly *assembly, const msi_entry *member, msi_slot *slot,
                            const void *const *outputs);

#endif
