/* change: a step in which a head changes its model, from the client's side, until its reply. */
#ifndef MSI_CLIENT_CHANGE_H
#define MSI_CLIENT_CHANGE_H

#include "client/state.h"

/* version may be NULL. Returns NULL if there is no memory. */
msi_change *msi_change_begin(msi_client *client, msi_endpoint *endpoint, int what,
                             const char *version);

/* The next slot of its endpoint must be free. */
int msi_change_send(msi_change *change);

/* Takes the reply; ends the change if it was abandoned. */
void msi_change_replied(msi_client *client, msi_change *change, int code);

void msi_change_end(msi_client *client, msi_change *change);
void msi_change_end_all(msi_client *client);

#endif
