/* lease: which rows of a head's slabs a request uses, when more are asked for, and when they are
 * given back. */
#ifndef MSI_LEASE_H
#define MSI_LEASE_H

#include "client/endpoint.h"

/* One side of a request uses rows of a lease, or does not any more. */
void msi_lease_hold(msi_endpoint *endpoint, msi_location *location, int lease);
void msi_lease_let_go(msi_endpoint *endpoint, msi_location *location);

/* It is to be given back, as soon as no request uses it. */
void msi_lease_end(msi_endpoint *endpoint, int lease);

/* The tensors of a request as they lie for this endpoint: those in its buffers are in place. */
void msi_lease_locate(msi_endpoint *endpoint, msi_payload *payload);

/* Does a request need rows that it has not got? Both sides then use one lease. */
int msi_lease_wanted(const msi_endpoint *endpoint, const msi_payload *payload);
void msi_lease_hold_for_both(msi_endpoint *endpoint, msi_payload *payload, int lease);

/* Asks for rows that the request will use, if the endpoint may ask. The next slot must be free. */
int msi_lease_may_ask(const msi_endpoint *endpoint);
int msi_lease_ask(msi_endpoint *endpoint, msi_payload *payload, int at, void *owner);

/* Gives back what is to be given back, while slots are free. */
int msi_lease_give_back(msi_endpoint *endpoint);

#endif
