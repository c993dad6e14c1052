/* call: requests of a simulation rank, from submit to end. */
#ifndef MSI_CALL_H
#define MSI_CALL_H

#include "client/state.h"

/* As mpiserve_submit(), _cancel() say, with checked tensors in the signature's order, and of at
 * most as many rows as a batch. how: CALL_TIMED measures the total time; otherwise two readings of
 * the clock are saved. CALL_IS_PIECE, CALL_IS_LAST_PIECE: the rows are a piece of a request.
 * CALL_BLOCKS: the caller does nothing else until it waits. */
enum { CALL_TIMED = 1, CALL_IS_PIECE = 2, CALL_BLOCKS = 4, CALL_IS_LAST_PIECE = 8 };
int msi_call_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                    void *const *outputs, const mpiserve_options *options, int how,
                    mpiserve_request *request);
int msi_call_cancel(msi_client *client, mpiserve_request *request);

/* Returns the code that the request ended with, or MPISERVE_ETIMEOUT; a timeout of 0 tests. */
int msi_call_wait(msi_client *client, mpiserve_request *request, double timeout,
                  mpiserve_stats *stats);

/* Ends a request that has not ended, with a code and this thread's last error, unless the fallback
 * answers. */
int msi_call_give_up(msi_client *client, mpiserve_request *request, int code,
                     mpiserve_stats *stats);

/* Takes the replies of an endpoint and sends what waits in its send queue; of all endpoints, and
 * lets MPI make progress too. Never waits. */
int msi_call_progress(msi_client *client, msi_endpoint *endpoint);
int msi_call_progress_all(msi_client *client);

#endif
