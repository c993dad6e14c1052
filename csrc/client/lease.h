/* lease: which rows of a head's slabs a request uses, when more are asked for, and when they are
 * given back. */
#ifndef MSI_LEASE_H
#define MSI_LEASE_H

#include "client/endpoint.h"

/* One side of a request uses rows of a lease, or does not any more. */
void msi_lease_hold(msi_link *link, msi_place *place, int lease);
void msi_lease_let_go(msi_link *link, msi_place *place);

/* It is to be given back, as soon as no request uses it. */
void msi_lease_end(msi_link *link, int lease);

/* The tensors of a request as they lie for this link: those in its buffers are in place. */
void msi_lease_place(msi_link *link, msi_cargo *cargo);

/* Does a request need rows that it has not got? Both sides then use one lease. */
int msi_lease_wanted(const msi_link *link, const msi_cargo *cargo);
void msi_lease_hold_for_both(msi_link *link, msi_cargo *cargo, int lease);

/* Asks for rows that the request will use, if the link may ask. The next slot must be free. */
int msi_lease_may_ask(const msi_link *link);
int msi_lease_ask(msi_link *link, msi_cargo *cargo, int at, void *owner);

/* Gives back what is to be given back, while slots are free. */
int msi_lease_give_back(msi_link *link);

#endif
