#include "client/reroute.h"

#include <stdio.h>

#include "base/error.h"
#include "client/census.h"
#include "client/lease.h"
#include "client/spare.h"
#include "mpi/failure.h"

static int replica_of(const msi_call *call) {
  return (int)(call->load - call->service->balance.loads);
}

/* Its death may be known before it counts as lost. */
static int is_away(const msi_endpoint *endpoint) {
  const msi_path *path = &endpoint->path;
  return endpoint->lost || endpoint->stopped ||
         msi_failure_is_dead(path->window->world, path->head);
}

static int is_lost(msi_call *call, const char *what) {
  int code = msi_endpoint_lost(call->message.endpoint);
  snprintf(call->message.text, sizeof call->message.text, "service '%s': %s, %s",
           call->service->name, mpiserve_last_error(), what);
  return code;
}

static int has_failed(msi_endpoint *endpoint) {
  int64_t entered_ns[MPISERVE_STATES];
  return !msi_endpoint_states(endpoint, entered_ns) && msi_state_of(entered_ns) == MPISERVE_FAILED;
}

static int no_other(msi_call *call) {
  msi_endpoint *endpoint = call->message.endpoint;
  if (is_away(endpoint)) return is_lost(call, "and no other replica lives");
  if (msi_spare_is_stopped(endpoint))
    snprintf(call->message.text, sizeof call->message.text,
             "service '%s' was stopped, and serves nowhere: mpiserve_start() starts it",
             call->service->name);
  else if (has_failed(endpoint))
    snprintf(call->message.text, sizeof call->message.text,
             "service '%s': every replica has failed; the logs of its ranks say why, that of rank "
             "%d last",
             call->service->name, endpoint->path.head);
  else
    snprintf(call->message.text, sizeof call->message.text,
             "the service is suspended at its only replica, rank %d", endpoint->path.head);
  return MPISERVE_EMODEL;
}

/* The caller's inputs have not changed, wherever they are: if that is a buffer of the first head,
 * they are copied to the other one, and results are copied back. */
int msi_reroute(msi_client *client, msi_call *call) {
  if (call->message.abandoned) return MPISERVE_ECANCELLED;
  if (call->message.exposed)
    return is_lost(call, "and may still write the outputs, which are rows of its buffer");
  if (call->state == CALL_IN_FLIGHT && is_away(call->message.endpoint) &&
      msi_calls_overwritten(call))
    return is_lost(call, "and may have replaced the inputs, which are rows of its buffer");
  if (call->arriving && msi_calls_replace_inputs(call))
    return is_lost(call, "and some of its results are in the place of the inputs");
  mpiserve_service *service = call->service;
  int64_t rows = call->payload.rows;
  msi_spare_see_failure(client, call);
  int to = call->load ? msi_balance_another(&service->balance, replica_of(call), rows) : -1;
  if (call->load) call->load->suspended = 1;
  if (to >= 0) to = msi_spare_another(service, replica_of(call), rows, to);
  if (to < 0) return no_other(call);
  client->metrics->counters.rerouted += is_away(call->message.endpoint);
  msi_balance_ended(call->load, rows);
  msi_lease_let_go(call->message.endpoint, &call->payload.input);
  msi_lease_let_go(call->message.endpoint, &call->payload.output);
  msi_assignment_aim_again(service, call, to);
  msi_lease_locate(call->message.endpoint, &call->payload);
  return MPISERVE_OK;
}
