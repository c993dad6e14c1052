/* leave: clients that leave, or fail, before a head takes a request that says so. */
#ifndef MSI_LEAVE_H
#define MSI_LEAVE_H

#include "head/broker.h"

/* Does a client still want answers? Gateways do not count. Not if all have left or died, or one has
 * failed; what they have rung for counts before it is taken. Local, also while a batch is open. */
int msi_leave_is_wanted(const msi_broker *broker);

/* Finds the marks of clients that had no slot for a request that says so. */
int msi_leave_look(msi_broker *broker);

#endif
