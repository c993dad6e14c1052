/* waiting: waits of a client that are for no request of the user's. */
#ifndef MSI_WAITING_H
#define MSI_WAITING_H

#include "client/state.h"

/* Makes progress until *done, which a reply of that endpoint sets; at most timeout seconds. */
int msi_waiting_for_reply(msi_client *client, msi_endpoint *endpoint, const int *done,
                          double timeout);

/* Waits until the next slot of the endpoint is free; MPISERVE_ETIMEOUT after the deadline. */
int msi_waiting_for_slot(msi_client *client, msi_endpoint *endpoint, int64_t deadline);

/* Waits until no message of this rank is at a head, or on the way to one; MPISERVE_ETIMEOUT after
 * the deadline, with a text that names the heads and what they do. */
int msi_waiting_for_all(msi_client *client, int64_t deadline);

#endif
