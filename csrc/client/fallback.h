/* fallback: a local model, or else a function of the caller's, answers what the service did not. */
#ifndef MSI_FALLBACK_H
#define MSI_FALLBACK_H

#include "client/state.h"

/* How a request that has ended ends for its caller: with its code and text, or with an error if its
 * result fails the check; in place of an error of the service with MPISERVE_OK, if one of the two
 * has answered. */
int msi_fallback_end(msi_client *client, msi_call *call);

/* The same of a request that the caller has given up with this code and this thread's last error,
 * and that its head may still work on: given is as it was before. */
int msi_fallback_give_up(msi_client *client, msi_call *given, int code);

/* Who has answered rows, as the statistics say: mpiserve_source. */
int64_t msi_fallback_source(const mpiserve_stats *stats);

/* Does this thread run a fallback of this client? */
int msi_fallback_runs(const msi_client *client);

#endif
