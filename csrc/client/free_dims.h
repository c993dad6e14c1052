/* free_dims: what a client keeps of a request to a service with free dimensions. */
#ifndef MSI_CLIENT_FREE_DIMS_H
#define MSI_CLIENT_FREE_DIMS_H

#include "client/state.h"

/* Takes over what msi_side_match() has found last, for a call that is about to be sent. */
int msi_free_dims_take(msi_call *call, const mpiserve_options *options);

/* As msi_endpoint_outputs(), for results of any dimensions that the caller has room for. An error
 * also becomes the text of the call. */
int msi_free_dims_results(msi_call *call, int slot);

#endif
