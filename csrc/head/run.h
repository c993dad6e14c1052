/* run: the engine of a service on its batch, without the caller of the library. */
#ifndef MSI_RUN_H
#define MSI_RUN_H

#include "head/broker.h"

/* Runs the batch that is open, and answers it. MPISERVE_EMODEL with the engine's text if it failed:
 * then the batch is still open. MPI is the rank's, before and after it. */
int msi_run_batch(msi_broker *broker);

#endif
