#include "client/reroute.h"

#include <stdio.h>

#include "base/error.h"
#include "client/census.h"
#include "client/lease.h"

/* The caller's tensors have not changed, wherever they are: if that is a buffer of the first head,
 * they are copied to the other one, and results are copied back. */
int msi_reroute(msi_call *call) {
  if (call->message.abandoned) return MPISERVE_ECANCELLED;
  if (!call->load) {
    snprintf(call->message.text, sizeof call->message.text,
             "the service is suspended at its only replica, rank %d",
             call->message.endpoint->path.head);
    return MPISERVE_EMODEL;
  }
  mpiserve_service *service = call->service;
  int from = (int)(call->load - service->balance.loads);
  call->load->suspended = 1;
  msi_balance_ended(call->load, call->payload.rows);
  msi_lease_let_go(call->message.endpoint, &call->payload.input);
  msi_lease_let_go(call->message.endpoint, &call->payload.output);
  msi_assignment_aim_again(service, call,
                           msi_balance_another(&service->balance, from, call->payload.rows));
  msi_lease_locate(call->message.endpoint, &call->payload);
  return MPISERVE_OK;
}
