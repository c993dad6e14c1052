/* client: the simulation side of a session: services, and the ordered end. */
#ifndef MSI_CLIENT_H
#define MSI_CLIENT_H

#include "client/call.h"

int msi_client_open(msi_client *client, const msi_world *world, msi_window *window);

/* Ends every request, takes leave from every head, frees all. */
int msi_client_close(msi_client *client);

int msi_client_find(msi_client *client, const char *name, mpiserve_service **service);

/* Says that this rank will ask: from now on it counts in the census. */
int msi_client_attach(mpiserve_service *service);

/* As mpiserve_fail() says. */
int msi_client_fail(msi_client *client, const char *text);

#endif
