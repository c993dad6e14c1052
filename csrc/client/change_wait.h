/* change_wait: changes of a model that a user of this rank waits for. */
#ifndef MSI_CHANGE_WAIT_H
#define MSI_CHANGE_WAIT_H

#include "client/state.h"

/* Sends a change to one replica, behind the requests that this rank submitted before. *change is
 * NULL after an error. */
int msi_change_submit(msi_client *client, msi_endpoint *endpoint, int what, const char *version,
                      msi_change **change);

/* Waits for its reply and ends it: the code of the reply, or MPISERVE_ETIMEOUT. */
int msi_change_wait(msi_client *client, msi_change *change, int64_t deadline);

#endif
