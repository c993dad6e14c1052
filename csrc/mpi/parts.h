/* parts: the profiles of ranks whose files the rank that reports cannot read. */
#ifndef MSI_PARTS_OF_PROFILE_H
#define MSI_PARTS_OF_PROFILE_H

#include "base/profile.h"
#include "mpi/world.h"

/* The rank that reports: the first inference rank. Local. */
int msi_parts_receiver(const msi_world *world);

/* Ranks of other nodes send their parts to the rank that reports, which writes them into copies
 * beside its own: the nodes may share no file system. Collective over the world, whose ranks are
 * all there. What cannot be written is not there, and the report says so. */
void msi_parts_gather(const msi_world *world, const msi_profile *profile);

#endif
