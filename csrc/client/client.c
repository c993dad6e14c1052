#include "client/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

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

/* Adds the replicas that can serve, on this node or elsewhere. */
static void list_choices(msi_client *client, mpiserve_service *service, int near) {
  for (int h = 0; h < client->n_endpoints; h++) {
    const msi_head *head = &client->world->heads[h];
    if (strcmp(head->description.name, service->name) || head->description.error) continue;
    if (is_near(client->world, head) == near)
      service->choices[service->replicas++] = &client->endpoints[h];
  }
}

/* Home is on this node if it can be, and goes round the clients. Every head is of one
 * service, so that all services together have as many choices as there are endpoints. */
static void choose_home(msi_client *client, mpiserve_service *service, int *used) {
  service->choices = client->choices + *used;
  list_choices(client, service, 1);
  int near = service->replicas;
  list_choices(client, service, 0);
  if (!service->replicas) return;
  int index = msi_world_index(client->world, client->world->rank);
  int home = service->seat = index % (near ? near : service->replicas);
  service->endpoint = service->choices[home];
  service->head = &client->world->heads[service->endpoint - client->endpoints];
  msi_balance_init(&service->balance, client->loads + *used, service->replicas, home,
                   service->head->description.stickiness, index);
  *used += service->replicas;
}

/* Memory of all endpoints and services; 0 if there is none. */
static int allocate(msi_client *client) {
  size_t n = (size_t)client->n_endpoints;
  client->endpoints = calloc(n, sizeof *client->endpoints);
  client->lines = calloc(n, sizeof *client->lines);
  client->services = calloc(n, sizeof *client->services);
  client->choices = calloc(n, sizeof(msi_endpoint *));
  client->loads = calloc(n, sizeof *client->loads);
  return client->endpoints && client->lines && client->services && client->choices && client->loads;
}

int msi_client_open(msi_client *client, const msi_world *world, msi_window *window) {
  *client = (msi_client){
      .world = world, .window = window, .backoff = world->backoff, .n_endpoints = world->n_heads};
  if (!allocate(client)) return msi_error(MPISERVE_ENOMEM, "no memory for endpoints");
  for (int h = 0; h < world->n_heads; h++) {
    int code = msi_endpoint_open(&client->endpoints[h], window, &world->heads[h]);
    if (code) return code;
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

static int not_loaded(const msi_client *client, const char *name) {
  for (int h = 0; h < client->n_endpoints; h++) {
    const msi_head *head = &client->world->heads[h];
    if (!strcmp(head->description.name, name))
      return msi_error(MPISERVE_EMODEL, "service '%s' on rank %d could not be loaded: %s", name,
                       head->rank, head->description.error_text);
  }
  return MPISERVE_EMODEL;
}

int msi_client_find(msi_client *client, const char *name, mpiserve_service **service) {
  mpiserve_service *found = service_named(client, name);
  if (!found) return not_found(client, name);
  if (!found->head) return not_loaded(client, name);
  *service = found;
  return MPISERVE_OK;
}

/* ---- control ------------------------------------------------------------------- */

static int send_control(msi_client *client, msi_endpoint *endpoint, msi_kind kind,
                        const char *text) {
  int code = msi_call_wait_free(client, endpoint);
  return code ? code : msi_endpoint_send(endpoint, kind, 0, -1, text, NULL);
}

int msi_client_attach(mpiserve_service *service) {
  if (service->attached) return MPISERVE_OK;
  service->attached = 1;
  return send_control(service->client, service->endpoint, MSI_ATTACH, NULL);
}

/* Waits until nothing of ours is at the head, or on the way to it. */
static int drain(msi_client *client, int at) {
  msi_endpoint *endpoint = &client->endpoints[at];
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && (endpoint->in_flight || client->lines[at].first)) {
    code = msi_call_progress(client, endpoint);
    if (!code && endpoint->in_flight && msi_wait_pause(&wait, &client->backoff, NULL))
      code = msi_call_progress_all(client);
  }
  return code;
}

static int is_idle(const msi_client *client) {
  for (int i = 0; i < client->n_endpoints; i++)
    if (client->endpoints[i].in_flight || client->lines[i].first) return 0;
  return 1;
}

/* What one head turns away goes to another, which may have been waited for already. */
static int drain_all(msi_client *client) {
  int code = MPISERVE_OK;
  while (!code && !is_idle(client))
    for (int i = 0; i < client->n_endpoints && !code; i++) code = drain(client, i);
  return code;
}

static int to_all(msi_client *client, msi_kind kind, const char *text) {
  int code = MPISERVE_OK;
  for (int i = 0; i < client->n_endpoints && !code; i++)
    code = send_control(client, &client->endpoints[i], kind, text);
  return code ? code : drain_all(client);
}

int msi_client_fail(msi_client *client, const char *text) {
  msi_call_cancel_all(client);
  return to_all(client, MSI_FAIL, text);
}

int msi_client_close(msi_client *client) {
  int code = drain_all(client);
  if (!code) code = to_all(client, MSI_LEAVE, NULL);
  for (int i = 0; i < client->n_endpoints; i++) msi_endpoint_close(&client->endpoints[i]);
  msi_call_close(client);
  free(client->endpoints);
  free(client->lines);
  free(client->services);
  free(client->choices);
  free(client->loads);
  return code;
}

/* ---- buffers -------------------------------------------------------------------- */

static int spare_buffer(const msi_endpoint *endpoint) {
  for (int i = MSI_SLOTS; i < MSI_LEASES; i++)
    if (!endpoint->leases[i].rows && !endpoint->leases[i].users && !endpoint->leases[i].stale)
      return i;
  return -1;
}

static int being_given(const msi_endpoint *endpoint) {
  for (int i = MSI_SLOTS; i < MSI_LEASES; i++)
    if (endpoint->leases[i].once || endpoint->leases[i].stale) return 1;
  return 0;
}

/* Finds one, if need be when a cancelled request lets go of it. */
static int find_spare(mpiserve_service *service, int *at) {
  msi_client *client = service->client;
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while ((*at = spare_buffer(service->endpoint)) < 0 && being_given(service->endpoint) && !code) {
    code = msi_call_progress(client, service->endpoint);
    if (!code && msi_wait_pause(&wait, &client->backoff, NULL))
      code = msi_call_progress_all(client);
  }
  if (code || *at >= 0) return code;
  return msi_error(MPISERVE_ENOMEM, "service '%s': all %d buffers are taken; give some back",
                   service->name, MSI_BUFFERS);
}

/* Over rma nothing is asked of the head: the memory is our own. */
static int reserve_buffer(mpiserve_service *service, int at, int64_t rows) {
  msi_lease *lease = &service->endpoint->leases[at];
  if (!service->endpoint->path.transport->same_node) {
    lease->rows = (uint32_t)rows;
    return MPISERVE_OK;
  }
  lease->users = 1;
  int code = msi_call_keep(service->client, service->endpoint, at, rows);
  lease->users = 0;
  return code;
}

int msi_client_buffer_take(mpiserve_service *service, int64_t rows, mpiserve_buffer *buffer) {
  msi_endpoint *endpoint = service->endpoint;
  int at, code = find_spare(service, &at);
  if (!code) code = reserve_buffer(service, at, rows);
  *buffer = (mpiserve_buffer){.id = (uint64_t)at + 1, .rows = rows};
  if (!code) code = msi_endpoint_map_buffer(endpoint, at, buffer);
  if (!code) return MPISERVE_OK;
  if (at >= 0) endpoint->leases[at] = (msi_lease){0};
  *buffer = (mpiserve_buffer){0};
  return code;
}

static int is_within(const void *data, const void *memory, size_t bytes) {
  return (uintptr_t)data - (uintptr_t)memory < bytes; /* before it: far behind it, unsigned */
}

/* Does an address lie in one of the tensors of a buffer? */
static int is_of_buffer(const void *data, const mpiserve_buffer *buffer, const msi_layout *layout) {
  const msi_side *in = &layout->inputs, *out = &layout->outputs;
  size_t rows = (size_t)buffer->rows;
  for (int i = 0; i < in->n; i++)
    if (is_within(data, buffer->inputs[i], rows * in->row_bytes[i])) return 1;
  for (int i = 0; i < out->n; i++)
    if (is_within(data, buffer->outputs[i], rows * out->row_bytes[i])) return 1;
  return 0;
}

static int names_buffer(const msi_call *call, const mpiserve_buffer *buffer,
                        const msi_layout *layout) {
  const msi_layout *its = &call->endpoint->layout;
  for (int i = 0; i < its->inputs.n; i++)
    if (is_of_buffer(call->payload.inputs[i], buffer, layout)) return 1;
  for (int i = 0; i < its->outputs.n; i++)
    if (is_of_buffer(call->payload.outputs[i], buffer, layout)) return 1;
  return 0;
}

/* Does a request use the memory of a buffer, as whatever tensor and of whatever service, that was
 * neither waited for nor cancelled? */
static int is_used(const mpiserve_service *service, const mpiserve_buffer *buffer) {
  const msi_client *client = service->client;
  for (uint32_t i = 0; i < client->n_calls; i++) {
    const msi_call *call = client->calls[i];
    int goes_on = call->service && call->state != CALL_IDLE && !call->abandoned;
    if (goes_on && names_buffer(call, buffer, &service->endpoint->layout)) return 1;
  }
  return 0;
}

int msi_client_buffer_give(mpiserve_service *service, mpiserve_buffer *buffer) {
  msi_endpoint *endpoint = service->endpoint;
  uint64_t at = buffer->id - 1;
  if (at < MSI_SLOTS || at >= MSI_LEASES || !msi_endpoint_holds(endpoint, (int)at))
    return msi_error(MPISERVE_ESTATE, "no such buffer: it was given back, or never taken");
  if (is_used(service, buffer))
    return msi_error(MPISERVE_ESTATE,
                     "service '%s': a request uses the buffer: wait for it, or cancel it, first",
                     service->name);
  *buffer = (mpiserve_buffer){0};
  return msi_call_give_buffer(service->client, endpoint, (int)at);
}
