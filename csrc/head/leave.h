/* leave: what a head does when clients leave, or say that they have failed. */
#ifndef MSI_LEAVE_H
#define MSI_LEAVE_H

#include "head/broker.h"

/* The client of a lane asks nothing any more. */
int msi_leave_take(msi_broker *broker, msi_inbox *inbox, uint32_t lane);

/* It has ended with an error, whose text is the payload of the request: all requests of all clients
 * end with an error. */
int msi_leave_after_failure(msi_broker *broker, const msi_entry *entry);

/* Does a client still want answers? Not if all have left or died, or one has failed; what they have
 * rung for counts before it is taken. Local, also while a batch is open. */
int msi_leave_is_wanted(const msi_broker *broker);

/* Finds the marks of clients that had no slot for a request that says so. */
int msi_leave_look(msi_broker *broker);

#endif
