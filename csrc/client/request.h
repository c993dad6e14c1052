/* request: requests as users see them, of any number of rows. One with more rows than a batch may
 * have is cut into pieces: each is a request of its own for the head, and all of them are one
 * request for the user. */
#ifndef MSI_REQUEST_H
#define MSI_REQUEST_H

#include "client/state.h"

/* The functions of call.h of the same names, for these requests. how is CALL_TIMED, CALL_BLOCKS or
 * both. */
int msi_request_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                       void *const *outputs, const mpiserve_options *options, int how,
                       mpiserve_request *request);
int msi_request_wait(msi_client *client, mpiserve_request *request, double timeout,
                     mpiserve_stats *stats);
int msi_request_give_up(msi_client *client, mpiserve_request *request, int code,
                        mpiserve_stats *stats);
int msi_request_cancel(msi_client *client, mpiserve_request *request);

/* Frees what is kept of them, not their calls. */
void msi_request_free(msi_client *client);

#endif
