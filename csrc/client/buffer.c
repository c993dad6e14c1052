#include "client/buffer.h"

#include "base/error.h"
#include "client/call.h"
#include "client/lease.h"
#include "client/waiting.h"

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

/* Finds a spare buffer; waits for one that cancelled requests still use. */
static int find_spare(mpiserve_service *service, int *at) {
  msi_client *client = service->client;
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while ((*at = spare_buffer(service->endpoint)) < 0 && being_given(service->endpoint) && !code) {
    code = msi_call_progress(client, service->endpoint);
    if (!code && msi_wait_pause(&wait, &client->backoff, NULL))
      code = msi_call_progress_all(client);
    if (!code && service->endpoint->stopped) code = msi_endpoint_lost(service->endpoint);
  }
  if (code || *at >= 0) return code;
  return msi_error(MPISERVE_ENOMEM, "service '%s': all %d buffers are taken; give some back",
                   service->name, MSI_BUFFERS);
}

/* Waits until the head has granted the rows, or refused them. */
static int ask(msi_client *client, msi_endpoint *endpoint, int lease, int64_t rows) {
  int code = msi_waiting_for_slot(client, endpoint, INT64_MAX);
  if (code) return code;
  int slot = (int)(endpoint->sent % MSI_SLOTS);
  msi_buffer_request *request = &client->buffer;
  *request = (msi_buffer_request){.message = {.type = MESSAGE_BUFFER, .endpoint = endpoint},
                                  .lease = lease};
  code = msi_endpoint_send(endpoint, MSI_KEEP, rows, lease, NULL, &request->message);
  if (!code) code = msi_waiting_for_reply(client, endpoint, &request->done, MPISERVE_FOREVER);
  /* A late reply must not answer the next request, which is in the same memory. */
  if (code && endpoint->owners[slot] == &request->message) endpoint->owners[slot] = NULL;
  return code ? code : msi_message_result(&request->message);
}

/* Waits until the head has been told of all rows that are marked to be given back: rows of ended
 * requests stay with this rank for later ones, and may be all that the pool has. */
static int give_idle_rows(msi_client *client, msi_endpoint *endpoint) {
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && endpoint->stale) {
    code = msi_call_progress(client, endpoint);
    if (!code && msi_wait_pause(&wait, &client->backoff, NULL))
      code = msi_call_progress_all(client);
    if (!code && endpoint->stopped) code = msi_endpoint_lost(endpoint);
  }
  return code;
}

static int ask_again(msi_client *client, msi_endpoint *endpoint, int at, int64_t rows) {
  int code = give_idle_rows(client, endpoint);
  return code ? code : ask(client, endpoint, at, rows);
}

/* Over rma the memory is this rank's own, and the head need not know. */
static int reserve_buffer(mpiserve_service *service, int at, int64_t rows) {
  msi_lease *lease = &service->endpoint->leases[at];
  if (!service->endpoint->path.transport->same_node) {
    lease->rows = (uint32_t)rows;
    return MPISERVE_OK;
  }
  msi_endpoint *home = service->endpoint;
  lease->users = 1;
  int code = ask(service->client, home, at, rows);
  if (code == MPISERVE_ENOMEM && msi_lease_end_idle(home))
    code = ask_again(service->client, home, at, rows);
  lease->users = 0;
  return code;
}

/* A buffer stays with its endpoint, also if the home of the service moves from there. */
static uint64_t id_of(const msi_client *client, const msi_endpoint *endpoint, int at) {
  return (uint64_t)(endpoint - client->endpoints) * MSI_LEASES + (uint64_t)at + 1;
}

/* The endpoint of a buffer, one of the service's, and the lease there; NULL: it is no buffer. */
static msi_endpoint *endpoint_of(const mpiserve_service *service, const mpiserve_buffer *buffer,
                                 int *at) {
  uint64_t index = (buffer->id - 1) / MSI_LEASES;
  *at = (int)((buffer->id - 1) % MSI_LEASES);
  for (int i = 0; i < service->replicas; i++)
    if ((uint64_t)(service->choices[i] - service->client->endpoints) == index && *at >= MSI_SLOTS)
      return service->choices[i];
  return NULL;
}

static int take(mpiserve_service *service, int64_t rows, mpiserve_buffer *buffer) {
  int at, code = find_spare(service, &at);
  msi_endpoint *endpoint = service->endpoint; /* the home may have moved */
  if (!code) code = reserve_buffer(service, at, rows);
  *buffer = (mpiserve_buffer){.id = id_of(service->client, endpoint, at), .rows = rows};
  if (!code) code = msi_endpoint_map_buffer(endpoint, at, buffer);
  if (!code) return MPISERVE_OK;
  if (at >= 0) endpoint->leases[at] = (msi_lease){0};
  *buffer = (mpiserve_buffer){0};
  return code;
}

/* The home may die meanwhile: then another one gives the memory, if another one lives. */
int msi_buffer_take(mpiserve_service *service, int64_t rows, mpiserve_buffer *buffer) {
  const msi_endpoint *home;
  int code;
  do {
    home = service->endpoint;
    code = take(service, rows, buffer);
  } while (code == MPISERVE_EPEER && service->endpoint != home);
  return code;
}

static int is_within(const void *data, const void *memory, size_t bytes) {
  return (uintptr_t)data - (uintptr_t)memory <
         bytes; /* unsigned: an address before memory is far behind it */
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
  const msi_layout *its = &call->message.endpoint->layout;
  for (int i = 0; i < its->inputs.n; i++)
    if (is_of_buffer(call->payload.inputs[i], buffer, layout)) return 1;
  for (int i = 0; i < its->outputs.n; i++)
    if (is_of_buffer(call->payload.outputs[i], buffer, layout)) return 1;
  return 0;
}

/* Does a request that goes on use the memory of a buffer, as any tensor of any service? */
static int is_used(const mpiserve_service *service, const mpiserve_buffer *buffer) {
  const msi_client *client = service->client;
  for (uint32_t i = 0; i < client->n_calls; i++) {
    const msi_call *call = client->calls[i];
    int goes_on = call->state != CALL_IDLE && !call->message.abandoned;
    if (goes_on && names_buffer(call, buffer, &service->endpoint->layout)) return 1;
  }
  return 0;
}

static int give_back(msi_client *client, msi_endpoint *endpoint, int lease) {
  if (!endpoint->path.transport->same_node || endpoint->lost) {
    msi_endpoint_free_buffer(endpoint, lease);
    endpoint->leases[lease] = (msi_lease){0};
    return MPISERVE_OK;
  }
  msi_lease_end(endpoint, lease);
  return msi_call_progress(client, endpoint);
}

int msi_buffer_give(mpiserve_service *service, mpiserve_buffer *buffer) {
  int at;
  msi_endpoint *endpoint = buffer->id ? endpoint_of(service, buffer, &at) : NULL;
  if (!endpoint || !msi_endpoint_holds(endpoint, at))
    return msi_error(MPISERVE_ESTATE, "no such buffer: it was given back, or never taken");
  if (is_used(service, buffer))
    return msi_error(MPISERVE_ESTATE,
                     "service '%s': a request uses the buffer: wait for it, or cancel it, first",
                     service->name);
  *buffer = (mpiserve_buffer){0};
  return give_back(service->client, endpoint, at);
}
