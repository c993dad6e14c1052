/* change: a request of a client for another model, from when it is made to its reply. */
#ifndef MSI_CLIENT_CHANGE_H
#define MSI_CLIENT_CHANGE_H

#include "client/calls.h"

/* version may be NULL. NULL if there is no memory. */
msi_change *msi_change_begin(msi_client *client, msi_endpoint *endpoint, int what,
                             const char *version);

/* The next slot of its endpoint must be free. */
int msi_change_send(msi_change *change);

/* The reply has come. One that was abandoned ends. */
void msi_change_replied(msi_client *client, msi_change *change, int code);

void msi_change_end(msi_client *client, msi_change *change);
void msi_change_end_all(msi_client *client);

#endif
