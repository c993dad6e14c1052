/* meeting: the end of a session, where all ranks of the world wait for each other. */
#ifndef MSI_MEETING_H
#define MSI_MEETING_H

#include "mpi/world.h"

/* Has every rank of the world come here, to its end of the session? Waits for them, without taking
 * the core from those who still work, until the deadline or until one has died. 0: this rank may
 * do nothing that the others have to take part in, such as freeing a window; but it may ask again,
 * later. 1: they all do it now. */
int msi_meeting_wait(msi_world *world, int64_t deadline);

#endif
