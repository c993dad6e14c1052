/* loss: what a head does when clients have died or left. */
#ifndef MSI_LOSS_H
#define MSI_LOSS_H

#include "head/broker.h"

/* The lanes of clients that are known to be dead are as if these had left, and had cancelled what
 * they had asked for; nothing that they wrote is taken any more. To be called again while
 * broker->dead_rows says that requests are held which use their rows. Not while a batch of the
 * broker is open. */
int msi_loss_of_clients(msi_broker *broker);

/* The client of a lane asks nothing any more. */
int msi_loss_of_leaver(msi_broker *broker, msi_inbox *inbox, uint32_t lane);

#endif
