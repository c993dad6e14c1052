#include "client/uncertainty.h"

#include <stdlib.h>

#include "base/error.h"

/* Rows in place get the memory beside them later: msi_lease_locate(). */
int msi_uncertainty_take(msi_call *call, int64_t rows) {
  if (rows > call->uncertainty_rows || !call->uncertainty) {
    free(call->uncertainty);
    call->uncertainty = malloc((size_t)(rows + 1) * sizeof *call->uncertainty); /* of 0 rows too */
    call->uncertainty_rows = rows;
  }
  if (!call->uncertainty)
    return msi_error(MPISERVE_ENOMEM, "no memory for the uncertainty of %lld rows",
                     (long long)rows);
  call->payload.outputs[msi_side_seen(&call->service->endpoint->layout.outputs)] =
      call->uncertainty;
  return MPISERVE_OK;
}
