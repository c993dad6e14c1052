/* clocks: by how much the clocks of the nodes differ. */
#ifndef MSI_CLOCKS_H
#define MSI_CLOCKS_H

#include "base/trace.h"
#include "mpi/world.h"

/* Finds what to add to the clock of this node to get that of rank 0. Collective over the world,
 * whose ranks are all there; takes some milliseconds for each node, and 2 s at most where ranks
 * share cores with others. Without success the clock counts as not measured. */
void msi_clocks_measure(msi_world *world, msi_clock *clock);

#endif
