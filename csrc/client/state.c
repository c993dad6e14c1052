#include "client/state.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/lease.h"

/* Buffers that users have stay theirs, and others are taken at the new home. What other threads may
 * read, such as the head of the home at open, does not change. */
void msi_service_lose(mpiserve_service *service, const msi_endpoint *endpoint) {
  for (int i = 0; i < service->replicas; i++) {
    if (service->choices[i] != endpoint) continue;
    msi_balance_lose(&service->balance, i);
    if (service->assignment == i) service->assignment = service->balance.home;
    service->endpoint = service->choices[service->balance.home];
    service->unrecorded = 0; /* the new home may capture */
  }
}

/* ---- requests ---------------------------------------------------------------------- */

static int add(msi_client *client) {
  msi_call **calls = realloc(client->calls, (client->n_calls + 1) * sizeof *calls);
  if (!calls) return 0;
  client->calls = calls;
  msi_call *call = calloc(1, sizeof *call);
  if (!call) return 0;
  call->message.type = MESSAGE_REQUEST;
  call->index = client->n_calls;
  call->generation = client->first_generation;
  client->calls[client->n_calls++] = call;
  client->idle = call;
  return 1;
}

int msi_calls_overwritten(const msi_call *call) {
  const msi_payload *p = &call->payload;
  const mpiserve_service *service = call->service;
  uintptr_t in = (uintptr_t)p->inputs[0], out = (uintptr_t)p->outputs[0];
  size_t bytes = (size_t)p->rows * service->endpoint->layout.inputs.row_bytes[0];
  return service->head->description.overwrites && p->input.in_place && p->output.in_place &&
         in < out + bytes && out < in + bytes;
}

static int overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
  return (uintptr_t)a < (uintptr_t)b + b_bytes && (uintptr_t)b < (uintptr_t)a + a_bytes;
}

int msi_calls_replace_inputs(const msi_call *call) {
  const msi_payload *p = &call->payload;
  const msi_layout *layout = &call->service->endpoint->layout;
  int is_free = msi_layout_is_free(layout);
  const msi_side *in = is_free ? &p->shapes->inputs : &layout->inputs;
  const msi_side *out = is_free ? &p->shapes->outputs : &layout->outputs;
  size_t rows = (size_t)p->rows;
  for (int i = 0; i < in->n; i++)
    for (int j = 0; j < msi_side_seen(out); j++)
      if (overlap(p->inputs[i], rows * in->row_bytes[i], p->outputs[j], rows * out->row_bytes[j]))
        return 1;
  return 0;
}

msi_call *msi_calls_take(msi_client *client) {
  if (!client->idle && !add(client)) return NULL;
  msi_call *call = client->idle;
  client->idle = call->next_idle;
  call->message.abandoned = call->message.replied = call->message.exposed = 0;
  call->message.text[0] = 0;
  call->arriving = 0;
  call->payload.deadline_ns = 0;
  call->trusted = NULL;
  call->stats = (mpiserve_stats){0};
  return call;
}

void msi_calls_give(msi_client *client, msi_call *call) {
  call->state = CALL_IDLE;
  call->generation++;
  call->next_idle = client->idle;
  client->idle = call;
}

void msi_calls_free(msi_client *client) {
  for (uint32_t i = 0; i < client->n_calls; i++) {
    free(client->calls[i]->payload.shapes);
    free(client->calls[i]->uncertainty);
  }
  for (uint32_t i = 0; i < client->n_calls; i++) free(client->calls[i]);
  free(client->calls);
}

msi_call *msi_calls_find(const msi_client *client, const mpiserve_request *request) {
  uint32_t index = (uint32_t)request->id - 1, generation = (uint32_t)(request->id >> 32);
  if (!request->id || index >= client->n_calls) return NULL;
  msi_call *call = client->calls[index];
  if (call->generation != generation || call->state == CALL_IDLE) return NULL;
  return call->message.abandoned ? NULL : call;
}

mpiserve_request msi_calls_handle(const msi_call *call) {
  return (mpiserve_request){(uint64_t)call->generation << 32 | (call->index + 1)};
}

/* ---- send queues ------------------------------------------------------------------- */

msi_send_queue *msi_send_queue_of(msi_client *client, const msi_endpoint *endpoint) {
  return &client->send_queues[endpoint - client->endpoints];
}

void msi_send_queue_push(msi_client *client, msi_message *message) {
  msi_send_queue *queue = msi_send_queue_of(client, message->endpoint);
  message->next = NULL;
  *(queue->first ? &queue->last->next : &queue->first) = message;
  queue->last = message;
}

void msi_send_queue_remove(msi_client *client, msi_message *message) {
  msi_send_queue *queue = msi_send_queue_of(client, message->endpoint);
  msi_message *before = NULL;
  for (msi_message *m = queue->first; m != message; m = m->next) before = m;
  *(before ? &before->next : &queue->first) = message->next;
  if (queue->last == message) queue->last = before;
}

int msi_message_result(const msi_message *message) {
  int code = message->code;
  if (!code) return MPISERVE_OK;
  return msi_error(code, "%s", message->text[0] ? message->text : mpiserve_strerror(code));
}

void msi_message_keep_text(msi_message *message, int slot) {
  const msi_slot *from = &message->endpoint->path.slots[slot];
  size_t bytes = from->reply.text_bytes;
  if (bytes > MSI_EAGER_BYTES) bytes = MSI_EAGER_BYTES;
  memcpy(message->text, from->output, bytes);
  message->text[bytes] = 0;
  message->replied = 1;
}

void msi_buffer_replied(msi_buffer_request *request, const msi_reply_header *reply) {
  msi_endpoint *endpoint = request->message.endpoint;
  msi_lease_granted(endpoint, request->lease, reply);
  endpoint->leases[request->lease].users = 0;
  request->message.code = reply->code;
  request->done = 1;
}
