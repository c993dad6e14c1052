/* lease: which rows of a head's slabs a request uses, when more are asked for, and when they are
 * given back. */
#ifndef MSI_LEASE_H
#define MSI_LEASE_H

#include "client/endpoint.h"

/* One side of a request uses rows of a lease, or no longer does. */
void msi_lease_hold(msi_endpoint *endpoint, msi_location *location, int lease);
void msi_lease_let_go(msi_endpoint *endpoint, msi_location *location);

/* Marks a lease to be given back as soon as no request uses it. */
void msi_lease_end(msi_endpoint *endpoint, int lease);

/* Fills in the rows of a request, and where they are; msi_lease_locate() the latter alone. */
void msi_lease_fill(msi_endpoint *endpoint, msi_payload *payload, int64_t rows, void *const *inputs,
                    void *const *outputs);

/* Locates the tensors of a request: those in buffers of this endpoint are in place. */
void msi_lease_locate(msi_endpoint *endpoint, msi_payload *payload);

/* Do the inputs or the outputs lie in a buffer of this endpoint? */
int msi_lease_in_place(const msi_endpoint *endpoint, int64_t rows, void *const *inputs,
                       void *const *outputs);

/* Does a request need rows that it does not have? Both sides then use one lease. */
int msi_lease_wanted(const msi_endpoint *endpoint, const msi_payload *payload);
void msi_lease_hold_for_both(msi_endpoint *endpoint, msi_payload *payload, int lease);

/* May the endpoint ask for rows? Asks for rows that the request will use; the next slot must be
 * free. */
int msi_lease_may_ask(const msi_endpoint *endpoint);
int msi_lease_ask(msi_endpoint *endpoint, msi_payload *payload, int at, void *owner);
int msi_lease_ask_rows(msi_endpoint *endpoint, int64_t rows, int at, void *owner);

/* The head has granted rows, or has taken them back. */
void msi_lease_granted(msi_endpoint *endpoint, int at, const msi_reply_header *reply);

/* Marks all rows that requests of this endpoint have used, and none uses now; returns whether there
 * are any. */
int msi_lease_end_idle(msi_endpoint *endpoint);

/* Gives marked leases back, while slots are free. */
int msi_lease_give_back(msi_endpoint *endpoint);

#endif
