/* reroute: sends a request to another replica after its service was suspended at the first one, or
 * that one has died. */
#ifndef MSI_REROUTE_H
#define MSI_REROUTE_H

#include "client/state.h"

/* Chooses another replica, whose send queue the request must then join; or returns the code that
 * the request ends with. */
int msi_reroute(msi_client *client, msi_call *call);

#endif
