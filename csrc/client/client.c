#include "client/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/call.h"
#include "client/change.h"
#include "client/check.h"
#include "client/life.h"
#include "client/local.h"
#include "client/pace.h"
#include "client/recording.h"
#include "client/request.h"
#include "client/stopped.h"
#include "client/waiting.h"

/* ---- services -------------------------------------------------------------- */

static mpiserve_service *service_named(const msi_client *client, const char *name) {
  for (int i = 0; i < client->n_services; i++)
    if (!strcmp(client->services[i].name, name)) return &client->services[i];
  return NULL;
}

/* Every service once, in the order of its first head. */
static void list_services(msi_client *client) {
  for (int h = 0; h < client->n_endpoints; h++) {
    const char *name = client->world->heads[h].description.name;
    if (!service_named(client, name))
      client->services[client->n_services++] = (mpiserve_service){.client = client, .name = name};
  }
}

static int is_near(const msi_world *world, const msi_head *head) {
  return world->nodes[head->rank] == world->nodes[world->rank];
}

/* Adds the replicas that can serve, on this node or elsewhere: spares, or others. */
static void list_choices(msi_client *client, mpiserve_service *service, int near, int spare) {
  for (int h = 0; h < client->n_endpoints; h++) {
    const msi_head *head = &client->world->heads[h];
    if (strcmp(head->description.name, service->name) || head->description.error) continue;
    if (is_near(client->world, head) == near && !head->description.spare == !spare)
      service->choices[service->replicas++] = &client->endpoints[h];
  }
}

/* Home is on this node if possible, and homes are spread over the clients. Every head has one
 * service, so all services together have as many choices as there are endpoints. */
static void choose_home(msi_client *client, mpiserve_service *service, int *used) {
  service->choices = client->choices + *used;
  list_choices(client, service, 1, 0);
  int near = service->replicas;
  list_choices(client, service, 0, 0);
  int planned = service->planned = service->replicas;
  list_choices(client, service, 1, 1);
  list_choices(client, service, 0, 1);
  if (!service->replicas) return;
  int index = msi_world_index(client->world, client->world->rank);
  int home = service->assignment = index % (near ? near : planned ? planned : service->replicas);
  service->endpoint = service->choices[home];
  service->head = &client->world->heads[service->endpoint - client->endpoints];
  service->checked = msi_check_wanted(&service->endpoint->layout.outputs);
  msi_balance_init(&service->balance, client->loads + *used, service->replicas, home,
                   service->head->description.stickiness, index);
  for (int i = planned; i < service->replicas; i++) service->balance.loads[i].suspended = 1;
  *used += service->replicas;
}

/* Memory for all endpoints and services; 0 if there is none. */
static int allocate(msi_client *client) {
  size_t n = (size_t)client->n_endpoints;
  client->endpoints = calloc(n, sizeof *client->endpoints);
  client->send_queues = calloc(n, sizeof *client->send_queues);
  client->services = calloc(n, sizeof *client->services);
  client->choices = calloc(n, sizeof(msi_endpoint *));
  client->loads = calloc(n, sizeof *client->loads);
  return client->endpoints && client->send_queues && client->services && client->choices &&
         client->loads;
}

/* Sessions differ in the ids of their requests, or the id of one that is closed could be that of a
 * request of the next one. */
static uint32_t first_generation(void) {
  static _Atomic uint32_t opened;
  return atomic_fetch_add(&opened, 1) << 16;
}

void msi_client_free(msi_client *client) {
  msi_local_end_all(client);
  for (int i = 0; client->endpoints && i < client->n_endpoints; i++)
    msi_endpoint_close(&client->endpoints[i]);
  free(client->endpoints);
  free(client->send_queues);
  free(client->services);
  free(client->choices);
  free(client->loads);
  *client = (msi_client){0};
}

static int open_endpoints(msi_client *client) {
  int code = MPISERVE_OK;
  if (!allocate(client)) code = msi_error(MPISERVE_ENOMEM, "no memory for endpoints");
  for (int h = 0; h < client->n_endpoints && !code; h++)
    code = msi_endpoint_open(&client->endpoints[h], client->window, &client->world->heads[h]);
  return code;
}

int msi_client_open(msi_client *client, const msi_world *world, msi_window *window,
                    msi_metrics *metrics) {
  *client = (msi_client){.world = world,
                         .window = window,
                         .metrics = metrics,
                         .backoff = world->backoff,
                         .n_endpoints = world->n_heads,
                         .first_generation = first_generation(),
                         .record = msi_recording_add,
                         .stopped_limit_ns = msi_stopped_limit()};
  int code = open_endpoints(client);
  if (code) {
    msi_client_free(client);
    return code;
  }
  list_services(client);
  for (int i = 0, used = 0; i < client->n_services; i++)
    choose_home(client, &client->services[i], &used);
  return MPISERVE_OK;
}

static int not_found(const msi_client *client, const char *name) {
  char known[MPISERVE_TEXT_SIZE] = "";
  size_t at = 0;
  for (int i = 0; i < client->n_services && at < sizeof known; i++)
    at += (size_t)snprintf(known + at, sizeof known - at, "%s'%s'", i ? ", " : "",
                           client->services[i].name);
  return msi_error(MPISERVE_ENOTFOUND, "no service '%s' in this world; there is %s", name, known);
}

static int not_loaded(msi_client *client, const char *name) {
  char since[MSI_CLOCK_SIZE];
  int h = 0;
  while (strcmp(client->world->heads[h].description.name, name)) h++;
  const msi_head *head = &client->world->heads[h];
  int code = msi_life_since(client, h, since);
  if (code) return code;
  return msi_error(MPISERVE_EMODEL, "service '%s' on rank %d could not be loaded: %s (since %s)",
                   name, head->rank, head->description.error_text, since);
}

int msi_client_has(const msi_client *client, const char *name) {
  return service_named(client, name) ? MPISERVE_OK : not_found(client, name);
}

int msi_client_find(msi_client *client, const char *name, mpiserve_service **service) {
  mpiserve_service *found = service_named(client, name);
  if (!found) return not_found(client, name);
  if (!found->head) return not_loaded(client, name);
  *service = found;
  return MPISERVE_OK;
}

/* ---- joining and leaving ------------------------------------------------------- */

static int send_note(msi_client *client, msi_endpoint *endpoint, msi_kind kind, const char *text,
                     int64_t deadline) {
  if (endpoint->lost) return MPISERVE_OK;
  int code = msi_waiting_for_slot(client, endpoint, deadline);
  if (code || endpoint->lost) return code; /* it may have died meanwhile */
  return msi_endpoint_send(endpoint, kind, 0, -1, text, NULL);
}

int msi_client_attach(mpiserve_service *service) {
  if (service->attached) return MPISERVE_OK;
  service->attached = 1;
  return send_note(service->client, service->endpoint, MSI_ATTACH, NULL, INT64_MAX);
}

/* Heads that can take the note must not wait for one that cannot. */
static void send_where_free(msi_client *client, msi_kind kind, const char *text,
                            msi_outcome *outcome) {
  for (int i = 0; i < client->n_endpoints; i++) {
    msi_endpoint *endpoint = &client->endpoints[i];
    if (endpoint->lost || !msi_endpoint_can_send(endpoint)) continue;
    msi_outcome_add(outcome, msi_endpoint_send(endpoint, kind, 0, -1, text, NULL));
    endpoint->noted = kind;
  }
}

/* A head that has no slot free in time finds a mark instead, should it go on. */
static int send_or_mark(msi_client *client, msi_endpoint *endpoint, msi_kind kind, const char *text,
                        int64_t deadline) {
  int code = send_note(client, endpoint, kind, text, deadline);
  if (code == MPISERVE_ETIMEOUT)
    msi_endpoint_mark(endpoint, kind == MSI_FAIL ? MSI_HAS_FAILED : MSI_HAS_LEFT);
  return code;
}

/* Whatever comes of one, the other heads get the note. */
static int send_to_all(msi_client *client, msi_kind kind, const char *text, int64_t deadline) {
  msi_outcome outcome = {0};
  send_where_free(client, kind, text, &outcome);
  for (int i = 0; i < client->n_endpoints; i++)
    if (client->endpoints[i].noted != kind)
      msi_outcome_add(&outcome, send_or_mark(client, &client->endpoints[i], kind, text, deadline));
  return msi_outcome_end(&outcome);
}

static void cancel_all(msi_client *client) {
  for (uint32_t i = 0; i < client->n_calls; i++) {
    mpiserve_request request = msi_calls_handle(client->calls[i]);
    if (msi_calls_find(client, &request)) msi_call_cancel(client, &request);
  }
}

int msi_client_fail(msi_client *client, const char *text) {
  int64_t deadline = msi_deadline(msi_world_close_limit());
  cancel_all(client);
  int code = send_to_all(client, MSI_FAIL, text, deadline);
  return code ? code : msi_waiting_for_all(client, deadline);
}

/* A head that has not answered gets the note all the same: should it go on, it will know. */
static int leave(msi_client *client, int64_t deadline) {
  int code = msi_waiting_for_all(client, deadline);
  if (!code) {
    code = send_to_all(client, MSI_LEAVE, NULL, deadline);
    return code ? code : msi_waiting_for_all(client, deadline);
  }
  char text[MPISERVE_TEXT_SIZE];
  snprintf(text, sizeof text, "%s", mpiserve_last_error());
  cancel_all(client);
  send_to_all(client, MSI_LEAVE, NULL, msi_now());
  return msi_error(code, "%s. This rank has left; MPI_Finalize waits until they go on or end",
                   text);
}

int msi_client_close(msi_client *client, int64_t deadline) {
  int code = leave(client, deadline);
  if (!code) code = msi_recording_failure(client);
  msi_recording_free(client);
  msi_pace_free_all(client);
  msi_request_free(client);
  msi_calls_free(client);
  msi_change_end_all(client);
  msi_client_free(client);
  return code;
}
