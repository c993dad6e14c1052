/* reload: another version of a model, at all replicas of a service or at none. */
#ifndef MSI_RELOAD_H
#define MSI_RELOAD_H

#include "client/state.h"

/* As mpiserve_reload() and mpiserve_unload() say. */
int msi_reload(const mpiserve_service *service, const char *version, double timeout);
int msi_unload(const mpiserve_service *service, double timeout);

#endif
