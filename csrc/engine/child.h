/* child: the loop of a child process whose model an engine runs: it answers batches that the parent
 * hands over, without an interpreter. What it cannot do is left to its caller, who may be one. No
 * MPI. */
#ifndef MSI_CHILD_H
#define MSI_CHILD_H

#include "base/handover.h"
#include "mpiserve.h"

enum { MSI_CHILD_MEMORIES = 4 };

/* The tensors of a model: the inputs, then the outputs. */
typedef struct msi_child_tensors {
  int n_inputs, n_outputs;
  size_t row_bytes[2 * MPISERVE_MAX_TENSORS];
} msi_child_tensors;

/* Memory that both sides map. The child maps it twice, so that its engine cannot write to inputs.
 */
typedef struct msi_child_memory {
  const char *inputs;
  char *outputs;
  size_t bytes;
} msi_child_memory;

typedef struct msi_child {
  msi_handover_side *side;
  const mpiserve_engine *engine; /* NULL: all calls are the caller's */
  msi_child_tensors tensors;
  msi_child_memory memories[MSI_CHILD_MEMORIES];
  uint64_t n_memories;
  uint32_t operation; /* of a batch */
} msi_child;

/* Answers batches by the engine, until there is a call for the caller, or until the deadline.
 * Returns whether there is one: another call, or a batch on which the engine has failed. */
int msi_child_next(msi_child *child, int64_t deadline);

#endif
