/* extrapolate: values on a line through two answers. No MPI calls. */
#ifndef MSI_EXTRAPOLATE_H
#define MSI_EXTRAPOLATE_H

#include "client/state.h"

/* MPISERVE_EARG if the service has an output whose values are no real or complex numbers of 4 or 8
 * bytes. */
int msi_extrapolate_can(const mpiserve_service *service);

/* outputs = last + ahead * (last - before), of rows rows of the side, which is that of the answers.
 * A row that fails the check of the service is that of last; all rows are, if they belong together.
 * *extrapolated: how many are not. */
int msi_extrapolate(const mpiserve_service *service, const msi_side *side, int64_t rows,
                    void *const *before, void *const *last, double ahead, void *const *outputs,
                    int64_t *extrapolated);

#endif
