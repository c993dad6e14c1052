#include "client/lease.h"

#include <string.h>

void msi_lease_hold(msi_endpoint *endpoint, msi_location *location, int lease) {
  location->lease = lease;
  endpoint->leases[lease].users++;
}

static void give_up(msi_endpoint *endpoint, msi_lease *lease) {
  endpoint->stale += !lease->stale;
  lease->stale = 1;
}

void msi_lease_let_go(msi_endpoint *endpoint, msi_location *location) {
  if (location->lease < 0) return;
  msi_lease *lease = &endpoint->leases[location->lease];
  location->lease = -1;
  if (--lease->users == 0 && lease->once) give_up(endpoint, lease);
}

void msi_lease_end(msi_endpoint *endpoint, int lease) {
  if (endpoint->leases[lease].users)
    endpoint->leases[lease].once = 1;
  else
    give_up(endpoint, &endpoint->leases[lease]);
}

void msi_lease_locate(msi_endpoint *endpoint, msi_payload *payload) {
  payload->input = payload->output = (msi_location){.lease = -1};
  if (msi_endpoint_find_location(endpoint, 0, payload->rows, payload->inputs, &payload->input))
    msi_lease_hold(endpoint, &payload->input, payload->input.lease);
  if (msi_endpoint_find_location(endpoint, 1, payload->rows, payload->outputs, &payload->output)) {
    msi_lease_hold(endpoint, &payload->output, payload->output.lease);
    msi_endpoint_find_hidden(endpoint, &payload->output, payload->outputs);
  }
}

void msi_lease_fill(msi_endpoint *endpoint, msi_payload *payload, int64_t rows, void *const *inputs,
                    void *const *outputs) {
  payload->rows = rows;
  memcpy(payload->inputs, inputs, (size_t)endpoint->layout.inputs.n * sizeof *inputs);
  memcpy(payload->outputs, outputs,
         (size_t)msi_side_seen(&endpoint->layout.outputs) * sizeof *outputs);
  msi_lease_locate(endpoint, payload);
}

/* Memory that is used in place belongs to the home replica. */
int msi_lease_in_place(const msi_endpoint *endpoint, int64_t rows, void *const *inputs,
                       void *const *outputs) {
  msi_location location;
  return msi_endpoint_find_location(endpoint, 0, rows, inputs, &location) ||
         msi_endpoint_find_location(endpoint, 1, rows, outputs, &location);
}

/* Sides that are neither in place nor in the slot share one lease. */
int msi_lease_wanted(const msi_endpoint *endpoint, const msi_payload *payload) {
  return (payload->input.lease < 0 && !msi_side_eager(&endpoint->layout.inputs, payload->rows)) ||
         (payload->output.lease < 0 && !msi_side_eager(&endpoint->layout.outputs, payload->rows));
}

void msi_lease_hold_for_both(msi_endpoint *endpoint, msi_payload *payload, int lease) {
  if (payload->input.lease < 0 && !msi_side_eager(&endpoint->layout.inputs, payload->rows))
    msi_lease_hold(endpoint, &payload->input, lease);
  if (payload->output.lease < 0 && !msi_side_eager(&endpoint->layout.outputs, payload->rows))
    msi_lease_hold(endpoint, &payload->output, lease);
}

/* Sizes that repeat get exactly their rows, so that neighbours touch and a batch needs no
 * gathering; sizes that vary get some rows to spare, so that the next larger request need not ask
 * again. */
int msi_lease_ask_rows(msi_endpoint *endpoint, int64_t rows, int at, void *owner) {
  int64_t wanted = rows + (endpoint->leases[at].renewed ? rows / 4 : 0);
  int64_t limit = endpoint->layout.max_rows;
  return msi_endpoint_send(endpoint, MSI_LEASE, wanted < limit ? wanted : limit, at, NULL, owner);
}

int msi_lease_ask(msi_endpoint *endpoint, msi_payload *payload, int at, void *owner) {
  msi_lease_hold_for_both(endpoint, payload, at);
  return msi_lease_ask_rows(endpoint, payload->rows, at, owner);
}

void msi_lease_granted(msi_endpoint *endpoint, int at, const msi_reply_header *reply) {
  msi_lease *lease = &endpoint->leases[at];
  lease->begin = reply->lease_begin;
  lease->rows = reply->rows;
  lease->once = (int)reply->lease_once;
  lease->renewed = 1;
}

/* Not while the endpoint has rows that other clients may wait for: asking may occupy the slot that
 * is needed to give them back. */
int msi_lease_may_ask(const msi_endpoint *endpoint) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (endpoint->leases[i].once) return 0;
  return 1;
}

int msi_lease_end_idle(msi_endpoint *endpoint) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (endpoint->leases[i].rows && !endpoint->leases[i].users)
      give_up(endpoint, &endpoint->leases[i]);
  return endpoint->stale != 0;
}

int msi_lease_give_back(msi_endpoint *endpoint) {
  int code = MPISERVE_OK;
  for (int i = 0; endpoint->stale && i < MSI_LEASES && !code; i++) {
    if (!endpoint->leases[i].stale || !msi_endpoint_can_send(endpoint)) continue;
    endpoint->leases[i] = (msi_lease){0};
    endpoint->stale--;
    code = msi_endpoint_send(endpoint, MSI_LEASE, 0, i, NULL, NULL);
  }
  return code;
}
