/* free_dims: what a head does in its own way for tensors with free dimensions. Requests of a batch
 * have equal ones, and their rows lie side by side; or, of a ragged service, each has its own, and
 * lies dense at the beginning of a row of the largest. No MPI calls. */
#ifndef MSI_FREE_DIMS_H
#define MSI_FREE_DIMS_H

#include "head/assembly.h"

/* Have two requests equal dimensions? Of inboxes by transport. */
int msi_free_dims_alike(const void *inboxes, const msi_entry *a, const msi_entry *b);

/* Makes room for the dimensions of results, which msi_assembly_close() frees. Local. */
int msi_free_dims_open(msi_assembly *assembly);

/* As msi_assembly_lay_out() and msi_assembly_scatter(). */
void msi_free_dims_lay_out(msi_assembly *assembly);
size_t msi_free_dims_scatter(const msi_assembly *assembly, const msi_entry *member, msi_slot *slot,
                             const void *const *outputs);

/* As mpiserve_batch_shapes_get() and mpiserve_result_shapes_set() say, of a batch that is open. */
void msi_free_dims_get(const msi_assembly *assembly, int64_t *shapes);
int msi_free_dims_set(msi_assembly *assembly, const char *service, int64_t rows,
                      const int64_t *shapes);

#endif
