/* loss: what a client does when heads have died: it takes back what it had sent there. */
#ifndef MSI_LOSS_H
#define MSI_LOSS_H

#include "client/state.h"

/* Looks, now and then, for heads that have died. The endpoint to one of them that has not been
 * seen to yet: from now on it is lost, and no service has its home there if another replica lives.
 * NULL: there is none. */
msi_endpoint *msi_loss_next(msi_client *client);

/* Takes a message that the head got and has not answered, or that waits to be sent there: the
 * oldest one. NULL: there is none left. */
msi_message *msi_loss_take(msi_client *client, msi_endpoint *endpoint);

/* All messages have been taken: no lease is left but those of buffers that users have. */
void msi_loss_end(msi_endpoint *endpoint);

#endif
