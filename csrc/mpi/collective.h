/* collective: what all ranks of a world do together at open and publish: by MPI, or by the memory
 * of a pair. Ranks may come minutes apart, as models are loaded: who waits sleeps, gives up when
 * its time is over, and sees when a rank has died. Also msi_world_gather() and msi_world_agree().
 */
#ifndef MSI_COLLECTIVE_H
#define MSI_COLLECTIVE_H

#include "mpi/world.h"

/* What is wrong with the limits that the environment sets; NULL: nothing. Local. */
const char *msi_collective_wrong_limit(void);

/* A copy of a communicator of the world's ranks; of a pair one of this process alone. */
int msi_collective_duplicate(msi_world *world, MPI_Comm comm);

/* Gathers counts[r] bytes of each rank r at every rank, at offsets[r]. */
int msi_collective_gather_some(msi_world *world, const void *mine, void *all, const int *counts,
                               const int *offsets, const char *what);

/* A rank that failed tells its code and text to all: the error of this call, on every rank. */
int msi_collective_share_error(msi_world *world, int rank, int code, const char *text);

#endif
