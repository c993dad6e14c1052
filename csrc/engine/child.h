/* child: engines on both sides of a hand-over. The parent's engine hands a batch over to its child,
 * whose loop runs it in an engine of its own: no interpreter is on the way. What either cannot do
 * is left to its caller, who may be an interpreter. No MPI. */
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

/* Memory that both sides map, as one side sees it. The child maps it twice, so that its engine
 * cannot write to inputs. */
typedef struct msi_child_memory {
  const char *inputs;
  char *outputs;
  size_t bytes;
} msi_child_memory;

/* ---- the parent ---- */

typedef struct msi_child_parent {
  msi_handover_side *side;
  msi_child_tensors tensors;
  msi_child_memory memory; /* in which batches lie, with its number: others are the caller's */
  uint64_t number;
  msi_place clients;  /* which the child's engine does not read */
  uint32_t operation; /* of a batch */
  int pidfd;
  int64_t patience_ns; /* after which a batch is left to the caller */
  int64_t posted_ns;   /* of a batch that is left to the caller; 0: none is */
  int found;           /* what msi_handover_wait() has said of it; MSI_HANDOVER_LATE: nothing yet */
} msi_child_parent;

/* The function run of an mpiserve_engine, with an msi_child_parent as its state. It fails without a
 * text where the caller shall run the batch: no call was posted, or posted_ns tells that one was.
 * Then the caller waits for its end, and sets posted_ns to 0. */
int msi_child_hand_over(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
                        char *text, size_t bytes);

/* ---- the child ---- */

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
