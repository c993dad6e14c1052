/* census: which replica of a service counts this client. A client counts in one census: that of
 * its assignment, the replica that it asked last, but for requests that it sends elsewhere while
 * others of its own are under way there. */
#ifndef MSI_CLIENT_CENSUS_H
#define MSI_CLIENT_CENSUS_H

#include "client/state.h"

/* Does a request to this choice change the assignment? Then msi_assignment_move(), after the
 * replies of the old one have been taken, says so to it. */
int msi_assignment_changes(const mpiserve_service *service, int chosen);
int msi_assignment_move(mpiserve_service *service, int chosen);

/* A request of so many rows is for this choice. */
void msi_assignment_aim(mpiserve_service *service, msi_call *call, int64_t rows, int chosen);

/* The same for one that a head has turned away, because the service is suspended there. */
void msi_assignment_aim_again(mpiserve_service *service, msi_call *call, int chosen);

#endif
