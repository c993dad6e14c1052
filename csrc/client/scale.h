/* scale: how many replicas of a service serve. */
#ifndef MSI_SCALE_H
#define MSI_SCALE_H

#include "client/state.h"

/* As mpiserve_scale() says. */
int msi_scale(const mpiserve_service *service, int replicas, double timeout);

#endif
