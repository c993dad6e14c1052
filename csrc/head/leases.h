/* leases: rows of the slabs that clients ask a service for: granted, waited for, kept as buffers.
 */
#ifndef MSI_LEASES_H
#define MSI_LEASES_H

#include "head/broker.h"

/* A client asks for rows, or with 0 rows gives some back. If there is no room, it waits for its
 * turn. */
int msi_leases_give(msi_broker *broker, const msi_entry *entry);

/* A client asks for a buffer: rows that it keeps, now or not at all. */
int msi_leases_keep(msi_broker *broker, const msi_entry *entry);

/* Grants rows to the clients that wait, in turn, while there is room. */
int msi_leases_grant(msi_broker *broker);

/* Refuses rows to clients that have waited too long. */
int msi_leases_refuse_late(msi_broker *broker, int64_t now);

/* Does a request of the same lane, in the queue or held, use the rows of the lease? */
int msi_leases_is_used(const msi_broker *broker, const msi_entry *by, int lease);

/* The service is not suspended any more: clients that wait for rows count in the census again. */
void msi_leases_rejoin(msi_broker *broker);

#endif
