/* call: requests of a simulation rank, from submit to end. */
#ifndef MSI_CALL_H
#define MSI_CALL_H

#include "client/calls.h"

/* As mpiserve_submit_with(), _cancel() say, with checked tensors in the signature's order.
 * timed: the total time is wanted in the end; two readings of the clock otherwise spared. */
int msi_call_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                    void *const *outputs, const mpiserve_options *options, int timed,
                    mpiserve_request *request);
int msi_call_cancel(msi_client *client, mpiserve_request *request);

/* Ends with what the request ended with, or with MPISERVE_ETIMEOUT; a timeout
 * of 0 tests. */
int msi_call_wait(msi_client *client, mpiserve_request *request, double timeout,
                  mpiserve_stats *stats);

/* Asks for rows to be kept as buffer lease, and waits for the answer. */
int msi_call_keep(msi_client *client, msi_link *link, int lease, int64_t rows);

/* Asks a head to change its model (mpiserve_change), when the calls before have been sent; the
 * request is to be waited for. Cancelled before it was sent it is sent all the same, but
 * MPISERVE_LOAD. */
int msi_call_control(msi_client *client, msi_link *link, int what, const char *version,
                     mpiserve_request *request);

/* Gives a buffer lease back, now or as soon as a slot is free. */
int msi_call_give_buffer(msi_client *client, msi_link *link, int lease);

/* Gives up whatever is under way. */
void msi_call_cancel_all(msi_client *client);

void msi_call_close(msi_client *client);

/* Takes the replies of a link and sends what waits for its turn; of all links, and
 * lets MPI work too. Never waits. */
int msi_call_progress(msi_client *client, msi_link *link);
int msi_call_progress_all(msi_client *client);

/* Waits until the next slot of the link is free. Heads answer in the end. */
int msi_call_wait_free(msi_client *client, msi_link *link);

#endif
