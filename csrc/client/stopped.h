/* stopped: heads that have not died and show no sign of life. What was sent there is withdrawn: it
 * goes another way, while its slot and its rows stay taken until the head replies, because a head
 * that goes on works on it, and writes. */
#ifndef MSI_STOPPED_H
#define MSI_STOPPED_H

#include "client/state.h"

/* After so many nanoseconds without a sign a head counts as stopped: MPISERVE_STOPPED_TIMEOUT. */
int64_t msi_stopped_limit(void);

/* Looks, now and then, for signs of life of heads that do not reply, and of those that are stopped:
 * these serve again once there is one. The endpoint to one that has stopped and has not been
 * seen to yet. NULL: there is none. */
msi_endpoint *msi_stopped_next(msi_client *client);

/* Takes a message that the head has not answered, or that waits to be sent there. Changes stay: a
 * head that goes on makes them. NULL: there is none left. */
msi_message *msi_stopped_take(msi_client *client, msi_endpoint *endpoint);

/* A slot without an owner has its reply, or the head has died: its rows are free. */
void msi_stopped_settle(msi_client *client, msi_endpoint *endpoint, int slot);

/* MPISERVE_EPEER: a head may still write to a buffer in which one of the tensors lies. */
int msi_stopped_check(const mpiserve_service *service, void *const *inputs, void *const *outputs);

#endif
