/* local: a local model, which a process of this rank's own runs, answers what no replica does. */
#ifndef MSI_LOCAL_H
#define MSI_LOCAL_H

#include "client/state.h"

/* Does the service have local models? */
int msi_local_wanted(const mpiserve_service *service);

/* Has the local model of the service answer rows, at most as many as a batch has; starts it first
 * if it does not run, because of why. Blocking. An error has a text. */
int msi_local_answer(mpiserve_service *service, int64_t rows, void *const *inputs,
                     void *const *outputs, const char *why);

/* Ends the processes of the local models of all services. */
void msi_local_end_all(msi_client *client);

#endif
