#include "client/loss.h"

#include "client/stopped.h"
#include "mpi/failure.h"

/* It may have stopped before. */
static void lose(msi_client *client, msi_endpoint *endpoint) {
  msi_endpoint_forget(endpoint);
  endpoint->lost = 1;
  client->unsettled -= endpoint->stopped;
  endpoint->stopped = 0;
  for (int i = 0; i < client->n_services; i++) msi_service_lose(&client->services[i], endpoint);
}

static msi_endpoint *next_dead(msi_client *client) {
  int n_dead = msi_failure_look(client->world);
  if (n_dead == client->n_dead) return NULL;
  for (int h = 0; h < client->n_endpoints; h++) {
    msi_endpoint *endpoint = &client->endpoints[h];
    if (endpoint->lost || !msi_failure_is_dead(client->world, endpoint->path.head)) continue;
    lose(client, endpoint);
    return endpoint;
  }
  client->n_dead = n_dead;
  return NULL;
}

msi_endpoint *msi_loss_next(msi_client *client) {
  msi_endpoint *endpoint = next_dead(client);
  return endpoint ? endpoint : msi_stopped_next(client);
}

msi_message *msi_loss_take(msi_client *client, msi_endpoint *endpoint) {
  if (endpoint->stopped) return msi_stopped_take(client, endpoint);
  for (int i = 0; i < MSI_SLOTS; i++) {
    int at = (int)((endpoint->sent + (uint64_t)i) % MSI_SLOTS);
    if (!endpoint->taken[at]) continue;
    msi_message *message = endpoint->owners[at];
    msi_endpoint_release(endpoint, at);
    if (message && !msi_message_is_leasing(message)) return message;
  }
  msi_message *first = msi_send_queue_of(client, endpoint)->first;
  if (first) msi_send_queue_remove(client, first);
  return first;
}

void msi_loss_end(msi_client *client, msi_endpoint *endpoint) {
  if (endpoint->stopped) return;
  for (int i = 0; i < MSI_SLOTS; i++) msi_stopped_settle(client, endpoint, i);
  for (int i = 0; i < MSI_LEASES; i++)
    if (!msi_endpoint_holds(endpoint, i) || i < MSI_SLOTS) endpoint->leases[i] = (msi_lease){0};
  endpoint->stale = 0;
  endpoint->path.replies_to_come = 0;
}
