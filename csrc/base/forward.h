/* forward: hands a batch over to the child without the parent's interpreter, as an engine does.
 * What does not end well at once is left open: the parent's own calls of handover.h go on with it.
 */
#ifndef MSI_FORWARD_H
#define MSI_FORWARD_H

#include <stddef.h>

#include "base/handover.h"

typedef struct msi_forward {
  msi_handover_side *parent;
  uint32_t operation;
  int inputs, outputs;
  const void *begin; /* of memory in which batches lie, and which the child has mapped */
  size_t bytes;
  uint64_t memory; /* its number */
  msi_place last;  /* goes with every batch, behind its tensors */
  int pidfd;       /* of the child */
  /* An open call: */
  int is_open;
  int found; /* what msi_handover_wait() has returned for it, which it does once */
  int64_t posted_ns;
} msi_forward;

/* As run of mpiserve_engine; state is an msi_forward. Fails if a tensor lies elsewhere, if a call
 * is open, if this one takes longer than 0.1 s (the parent handles signals meanwhile), if rows of
 * it are done early, or if it ends with a message or by a death. A call is open then, but for the
 * first. */
int msi_forward_run(void *state, int64_t rows, const void *const *inputs, void *const *outputs,
                    char *text, size_t bytes);

#endif
