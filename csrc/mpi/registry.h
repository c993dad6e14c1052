/* registry: what the heads of a world have published. No MPI calls. */
#ifndef MSI_REGISTRY_H
#define MSI_REGISTRY_H

#include "mpi/world.h"

/* Replicas of one service must look the same to a client. MPISERVE_ECONFIG: two do not. Local. */
int msi_registry_check(const msi_world *world);

#endif
