/* client: the simulation side of a session: services, and the ordered end. */
#ifndef MSI_CLIENT_H
#define MSI_CLIENT_H

#include "client/call.h"

/* On failure all is freed. */
int msi_client_open(msi_client *client, const msi_world *world, msi_window *window,
                    msi_metrics *metrics);

/* Waits for every request, leaves every head, frees all: also after MPISERVE_ETIMEOUT, when heads
 * have not answered by the deadline. */
int msi_client_close(msi_client *client, int64_t deadline);

/* Frees all of a client that has sent nothing. */
void msi_client_free(msi_client *client);

/* MPISERVE_ENOTFOUND if there is no service of this name, in whatever state. */
int msi_client_has(const msi_client *client, const char *name);

int msi_client_find(msi_client *client, const char *name, mpiserve_service **service);

/* Announces that this rank will send requests: the census counts it from now on. */
int msi_client_attach(mpiserve_service *service);

/* As mpiserve_fail() says. */
int msi_client_fail(msi_client *client, const char *text);

#endif
