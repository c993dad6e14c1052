#include "client/spare.h"

#include <stdio.h>
#include <string.h>

static int last_state(msi_endpoint *endpoint) {
  int64_t entered_ns[MPISERVE_STATES];
  return msi_endpoint_states(endpoint, entered_ns) ? MPISERVE_GONE : msi_state_of(entered_ns);
}

static int state_of(msi_endpoint *endpoint) {
  return endpoint->lost ? MPISERVE_GONE : last_state(endpoint);
}

static int is_serving(int state) {
  return state == MPISERVE_LOADING || state == MPISERVE_READY || state == MPISERVE_BUSY ||
         state == MPISERVE_RESTARTING;
}

int msi_spare_serves(msi_endpoint *endpoint) { return is_serving(state_of(endpoint)); }

int msi_spare_is_stopped(msi_endpoint *endpoint) { return state_of(endpoint) == MPISERVE_LAUNCHED; }

/* ---- requests pass them over ------------------------------------------------------- */

int msi_spare_choose(mpiserve_service *service, int64_t rows, int chosen) {
  msi_balance *balance = &service->balance;
  for (int i = 0; i < balance->n && balance->loads[chosen].suspended; i++) {
    int state = state_of(service->choices[chosen]);
    if (state != MPISERVE_LAUNCHED && state != MPISERVE_LOADING) break;
    balance->loads[chosen].unseen = 0;
    chosen = msi_balance_choose(balance, rows);
  }
  return chosen;
}

int msi_spare_another(mpiserve_service *service, int i, int64_t rows, int chosen) {
  msi_balance *balance = &service->balance;
  for (int k = 0; k < balance->n && chosen >= 0; k++) {
    if (!balance->loads[chosen].suspended) return chosen;
    int state = state_of(service->choices[chosen]);
    if (state != MPISERVE_LAUNCHED && state != MPISERVE_GONE) return chosen;
    balance->loads[chosen].unseen = 0;
    chosen = msi_balance_another(balance, i, rows);
  }
  return -1;
}

/* ---- a spare takes the place of a dead head ------------------------------------------- */

static int choice_of(const mpiserve_service *service, const msi_endpoint *endpoint) {
  for (int i = 0; i < service->replicas; i++)
    if (service->choices[i] == endpoint) return i;
  return -1;
}

static int all_suspended(const msi_balance *balance) {
  for (int i = 0; i < balance->n; i++)
    if (!balance->loads[i].suspended) return 0;
  return 1;
}

/* Requests that go to it from now on follow the change, and wait there for the model. */
static void make_home(mpiserve_service *service, int i) {
  service->balance.loads[i].suspended = 0;
  service->balance.home = service->assignment = i;
  service->endpoint = service->choices[i];
}

/* All clients ask the spares in the same order, so that they agree on one. */
static void ask_from(msi_client *client, mpiserve_service *service, int h, const char *dead) {
  for (; h < client->n_endpoints; h++) {
    msi_endpoint *endpoint = &client->endpoints[h];
    int i = choice_of(service, endpoint);
    if (i < service->planned || endpoint->lost) continue;
    msi_change *change = msi_change_begin(client, endpoint, MPISERVE_REPLACE, dead);
    if (!change) return; /* no memory: the other replicas answer */
    change->message.abandoned = 1;
    msi_send_queue_push(client, &change->message);
    if (all_suspended(&service->balance)) make_home(service, i);
    return;
  }
}

/* Memory of a dead head stays readable on its node: a replica that was stopped, or never began, is
 * not replaced. */
static int served(const mpiserve_service *service, int i) {
  msi_endpoint *endpoint = service->choices[i];
  if (endpoint->path.transport->same_node) return is_serving(last_state(endpoint));
  return i < service->planned || service->balance.loads[i].known;
}

void msi_spare_replace(msi_client *client, const msi_endpoint *dead) {
  char rank[MPISERVE_NAME_SIZE];
  snprintf(rank, sizeof rank, "%d", dead->path.head);
  for (int s = 0; s < client->n_services; s++) {
    mpiserve_service *service = &client->services[s];
    int i = choice_of(service, dead);
    if (i >= 0 && served(service, i)) ask_from(client, service, 0, rank);
  }
}

void msi_spare_see_failure(msi_client *client, const msi_call *call) {
  mpiserve_service *service = call->service;
  msi_endpoint *endpoint = call->message.endpoint;
  if (service->replicas == service->planned || endpoint->replaced) return;
  if (endpoint->lost || endpoint->stopped || last_state(endpoint) != MPISERVE_FAILED) return;
  char rank[MPISERVE_NAME_SIZE];
  snprintf(rank, sizeof rank, "%d", endpoint->path.head);
  endpoint->replaced = 1;
  if (call->load) call->load->suspended = 1;
  ask_from(client, service, 0, rank);
}

static void ask_next(msi_client *client, const msi_change *change) {
  int h = (int)(change->message.endpoint - client->endpoints);
  for (int s = 0; s < client->n_services; s++) {
    mpiserve_service *service = &client->services[s];
    int i = choice_of(service, change->message.endpoint);
    if (i < 0) continue;
    if (!msi_spare_serves(change->message.endpoint)) service->balance.loads[i].suspended = 1;
    ask_from(client, service, h + 1, change->version);
  }
}

void msi_spare_replied(msi_client *client, msi_change *change, int code) {
  if (change->what == MPISERVE_REPLACE && code) ask_next(client, change);
  msi_change_replied(client, change, code);
}
