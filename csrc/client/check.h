/* check: are the values of a result such as the signature promises? No MPI calls. */
#ifndef MSI_CHECK_H
#define MSI_CHECK_H

#include <stddef.h>

#include "protocol/tensor.h"

/* Does the signature promise anything of these tensors? */
int msi_check_wanted(const msi_side *outputs);

/* Do all rows keep what it promises? */
int msi_check_passes(const msi_side *outputs, int64_t rows, void *const *data);

/* The shapes of the tensors, where the signature leaves some of them open. */
typedef int64_t msi_check_shapes[MPISERVE_MAX_TENSORS][MPISERVE_MAX_DIMS];

/* The rows that do not, ascending; their number. The text says what is wrong with the first one: in
 * which row, or in which element of tensors without rows. NULL: the signature has their shapes. */
int64_t msi_check_failed(const msi_side *outputs, int64_t rows, void *const *data,
                         const msi_check_shapes *shapes, int64_t *failed, char *text, size_t size);

#endif
