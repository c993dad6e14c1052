/* loss: what a head does when clients have died, and with rows of those that have left. */
#ifndef MSI_LOSS_H
#define MSI_LOSS_H

#include "head/broker.h"

/* The lanes of clients that are known to be dead are as if these had left, and had cancelled what
 * they had asked for; nothing that they wrote is taken any more. To be called again while
 * broker->dead_rows says that requests are held which use their rows. Not while a batch of the
 * broker is open. */
int msi_loss_of_clients(msi_broker *broker);

/* Frees the rows of the first n leases of a lane whose client asks nothing any more. Those that its
 * requests still use set broker->dead_rows. */
void msi_loss_free_rows(msi_broker *broker, msi_inbox *inbox, uint32_t lane, int n);

#endif
