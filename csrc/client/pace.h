/* pace: the requests of a service that follow the time steps of the simulation: mpiserve_pace. */
#ifndef MSI_PACE_H
#define MSI_PACE_H

#include "client/state.h"

/* The functions of mpiserve.h of the same names, with checked tensors in the signature's order. */
int msi_pace_open(mpiserve_service *service, const mpiserve_pace_options *options,
                  mpiserve_pace *opened);
int msi_pace_step(msi_pace *pace, int64_t rows, void *const *inputs, void *const *outputs,
                  double timeout, mpiserve_stats *stats);
void msi_pace_restart(msi_pace *pace);
void msi_pace_close(msi_pace *pace);

/* The pace of the user's handle; NULL, and MPISERVE_ESTATE: it was closed, or is another
 * service's. */
msi_pace *msi_pace_find(const mpiserve_service *service, const mpiserve_pace *pace);

/* Frees all of a client that has left: their requests have ended. */
void msi_pace_free_all(msi_client *client);

#endif
