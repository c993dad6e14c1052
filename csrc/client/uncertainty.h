/* uncertainty: the output of a service that its clients do not see. No MPI calls. */
#ifndef MSI_UNCERTAINTY_H
#define MSI_UNCERTAINTY_H

#include "client/state.h"

/* Gives a request of so many rows memory for it, which stays with the call. */
int msi_uncertainty_take(msi_call *call, int64_t rows);

#endif
