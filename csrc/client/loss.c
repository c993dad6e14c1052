#include "client/loss.h"

#include "mpi/failure.h"

/* Buffers that users have stay theirs, and others are taken at the new home. What other threads may
 * read, such as the head of the home at open, does not change. */
static void lose_replica(mpiserve_service *service, const msi_endpoint *endpoint) {
  for (int i = 0; i < service->replicas; i++) {
    if (service->choices[i] != endpoint) continue;
    msi_balance_lose(&service->balance, i);
    if (service->assignment == i) service->assignment = service->balance.home;
    service->endpoint = service->choices[service->balance.home];
  }
}

msi_endpoint *msi_loss_next(msi_client *client) {
  int n_dead = msi_failure_look(client->world);
  if (n_dead == client->n_dead) return NULL;
  for (int h = 0; h < client->n_endpoints; h++) {
    msi_endpoint *endpoint = &client->endpoints[h];
    if (endpoint->lost || !msi_failure_is_dead(client->world, endpoint->path.head)) continue;
    endpoint->lost = 1;
    for (int i = 0; i < client->n_services; i++) lose_replica(&client->services[i], endpoint);
    return endpoint;
  }
  client->n_dead = n_dead;
  return NULL;
}

/* A request that waits for rows is in the send queue too: there it is taken. */
static int is_queued(const msi_message *message) {
  return message->type == MESSAGE_REQUEST && ((const msi_call *)message)->state == CALL_LEASING;
}

msi_message *msi_loss_take(msi_client *client, msi_endpoint *endpoint) {
  for (int i = 0; i < MSI_SLOTS; i++) {
    int at = (int)((endpoint->sent + (uint64_t)i) % MSI_SLOTS);
    if (!endpoint->taken[at]) continue;
    msi_message *message = endpoint->owners[at];
    msi_endpoint_release(endpoint, at);
    if (message && !is_queued(message)) return message;
  }
  msi_message *first = msi_send_queue_of(client, endpoint)->first;
  if (first) msi_send_queue_remove(client, first);
  return first;
}

void msi_loss_end(msi_endpoint *endpoint) {
  for (int i = 0; i < MSI_LEASES; i++)
    if (!msi_endpoint_holds(endpoint, i) || i < MSI_SLOTS) endpoint->leases[i] = (msi_lease){0};
  endpoint->stale = 0;
  endpoint->path.replies_to_come = 0;
}
