#include "client/reroute.h"

#include <stdio.h>

#include "base/error.h"
#include "client/census.h"
#include "client/lease.h"

static int replica_of(const msi_call *call) {
  return (int)(call->load - call->service->balance.loads);
}

static int no_other(msi_call *call) {
  const msi_endpoint *endpoint = call->message.endpoint;
  if (endpoint->lost) {
    int code = msi_endpoint_lost(endpoint);
    snprintf(call->message.text, sizeof call->message.text,
             "service '%s': %s, and no other replica lives", call->service->name,
             mpiserve_last_error());
    return code;
  }
  snprintf(call->message.text, sizeof call->message.text,
           "the service is suspended at its only replica, rank %d", endpoint->path.head);
  return MPISERVE_EMODEL;
}

/* The caller's tensors have not changed, wherever they are: if that is a buffer of the first head,
 * they are copied to the other one, and results are copied back. */
int msi_reroute(msi_client *client, msi_call *call) {
  if (call->message.abandoned) return MPISERVE_ECANCELLED;
  mpiserve_service *service = call->service;
  int64_t rows = call->payload.rows;
  int to = call->load ? msi_balance_another(&service->balance, replica_of(call), rows) : -1;
  if (to < 0) return no_other(call);
  client->counters.rerouted += call->message.endpoint->lost;
  call->load->suspended = 1;
  msi_balance_ended(call->load, rows);
  msi_lease_let_go(call->message.endpoint, &call->payload.input);
  msi_lease_let_go(call->message.endpoint, &call->payload.output);
  msi_assignment_aim_again(service, call, to);
  msi_lease_locate(call->message.endpoint, &call->payload);
  return MPISERVE_OK;
}
