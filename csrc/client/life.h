/* life: the states of the replicas of a service, as a client reads them. */
#ifndef MSI_CLIENT_LIFE_H
#define MSI_CLIENT_LIFE_H

#include "client/call.h"

enum { MSI_CLOCK_SIZE = 32 };

/* When the replica of a head came into its state: a text of MSI_CLOCK_SIZE bytes. */
int msi_life_since(msi_client *client, int head, char *text);

/* As mpiserve_service_state_get() and mpiserve_service_wait_ready() say, of a service that exists.
 */
int msi_life_get(msi_client *client, const char *name, int n, mpiserve_replica_state *state);
int msi_life_wait(msi_client *client, const char *name, double timeout);

#endif
