#include "client/recording.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/call.h"
#include "client/lease.h"

enum { MOST_BYTES = 64 << 20 }; /* of copies that wait to be sent: then the caller waits */

/* ---- where a pair lies --------------------------------------------------------------- */

static size_t row_bytes(const msi_layout *layout) {
  return layout->inputs.total_row_bytes + layout->outputs.total_row_bytes;
}

/* Both sides are in the half of the slot that the client writes, or both in the slabs. */
static int is_eager(const msi_layout *layout, int64_t rows) {
  return (size_t)rows * row_bytes(layout) <= layout->inputs.slot_bytes;
}

/* Where results take the place of the inputs, the outputs of a pair lie in rows behind these. */
static int64_t rows_behind(const msi_layout *layout, int64_t rows) {
  return layout->outputs_at[0] == layout->inputs_at[0] ? rows : 0;
}

/* The most rows of one record; 0: not even one can be sent. */
static int64_t most_rows(const msi_layout *layout) {
  int64_t rows = layout->max_rows;
  if (rows_behind(layout, rows)) rows /= 2;
  return rows ? rows : is_eager(layout, 1);
}

/* ---- errors --------------------------------------------------------------------------- */

static void note(msi_client *client, const msi_call *call, int code, const char *text) {
  msi_recording *recording = &client->recording;
  if (recording->code) return;
  recording->code = code;
  snprintf(recording->text, sizeof recording->text,
           "service '%s': %lld rows that were recorded before are perhaps not captured: %s",
           call->service->name, (long long)call->payload.rows, text);
}

int msi_recording_failure(msi_client *client) {
  int code = client->recording.code;
  client->recording.code = MPISERVE_OK;
  return code ? msi_error(code, "%s", client->recording.text) : MPISERVE_OK;
}

/* ---- from begin to end ------------------------------------------------------------------ */

static void drop_copy(msi_client *client, msi_call *call) {
  if (!call->own) return;
  client->recording.bytes -=
      (size_t)call->payload.rows * row_bytes(&call->service->endpoint->layout);
  free(call->own);
  call->own = NULL;
}

static void end(msi_client *client, msi_call *call) {
  drop_copy(client, call);
  msi_lease_let_go(call->message.endpoint, &call->payload.input);
  msi_lease_let_go(call->message.endpoint, &call->payload.output);
  call->message.type = MESSAGE_REQUEST;
  msi_calls_give(client, call);
}

static void hold(msi_endpoint *endpoint, msi_payload *payload, int lease) {
  msi_lease_hold(endpoint, &payload->input, lease);
  msi_lease_hold(endpoint, &payload->output, lease);
  payload->output.row = (uint32_t)rows_behind(&endpoint->layout, payload->rows);
}

/* Returns whether it has rows now. */
static int find_rows(msi_call *call, int *code) {
  msi_endpoint *endpoint = call->message.endpoint;
  int64_t rows = call->payload.rows;
  if (call->payload.input.lease >= 0 || is_eager(&endpoint->layout, rows)) return 1;
  rows += rows_behind(&endpoint->layout, rows);
  int at = msi_endpoint_find_lease(endpoint, rows);
  int found = at >= 0;
  if (!found) at = msi_endpoint_spare_lease(endpoint);
  if (at < 0 || (!found && !msi_lease_may_ask(endpoint))) return 0;
  hold(endpoint, &call->payload, at);
  if (found) return 1;
  call->state = CALL_LEASING;
  *code = msi_lease_ask_rows(endpoint, rows, at, &call->message);
  return 0;
}

/* The rest of a request is as that of any other. */
static int write_outputs(msi_endpoint *endpoint, const msi_payload *payload) {
  const msi_side *side = &endpoint->layout.outputs;
  msi_path *path = &endpoint->path;
  int code = MPISERVE_OK;
  if (payload->output.lease < 0) {
    msi_slot *slot = &path->slots[endpoint->sent % MSI_SLOTS];
    size_t inputs = (size_t)payload->rows * endpoint->layout.inputs.total_row_bytes;
    msi_side_pack(side, payload->rows, slot->input + inputs, payload->outputs);
    return code;
  }
  size_t row = endpoint->leases[payload->output.lease].begin + payload->output.row;
  for (int i = 0; i < side->n && !code; i++)
    code = path->transport->write(path, endpoint->layout.outputs_at[i] + row * side->row_bytes[i],
                                  payload->outputs[i], (size_t)payload->rows * side->row_bytes[i]);
  return code;
}

int msi_recording_step(msi_client *client, msi_call *call, int *next) {
  msi_endpoint *endpoint = call->message.endpoint;
  int code = MPISERVE_OK;
  *next = 0;
  if (!find_rows(call, &code)) return code;
  code = write_outputs(endpoint, &call->payload);
  if (!code)
    code =
        msi_endpoint_infer(endpoint, MSI_RECORD, &call->payload, &call->message, &call->sequence);
  if (code) return code == MSI_NOT_YET ? MPISERVE_OK : code;
  msi_send_queue_remove(client, &call->message);
  call->state = CALL_IN_FLIGHT;
  drop_copy(client, call);
  *next = 1;
  return code;
}

void msi_recording_replied(msi_client *client, msi_call *call, const msi_reply_header *reply) {
  if (reply->code) note(client, call, reply->code, call->message.text);
  if (call->state == CALL_LEASING) {
    msi_lease_granted(call->message.endpoint, call->payload.input.lease, reply);
    call->state = CALL_QUEUED;
    if (!reply->code && !call->message.code) return;
    msi_send_queue_remove(client, &call->message);
  } else if (!reply->code && !reply->rows) {
    call->service->unrecorded = 1;
  }
  end(client, call);
}

void msi_recording_lost(msi_client *client, msi_call *call) {
  msi_endpoint *home = call->service->endpoint, *before = call->message.endpoint;
  if (call->state == CALL_IN_FLIGHT || home->lost || home->stopped) {
    int code = msi_endpoint_lost(before);
    note(client, call, code, mpiserve_last_error());
    end(client, call);
    return;
  }
  msi_lease_let_go(before, &call->payload.input);
  msi_lease_let_go(before, &call->payload.output);
  call->message.endpoint = home;
  call->state = CALL_QUEUED;
  msi_send_queue_push(client, &call->message);
}

void msi_recording_free(msi_client *client) {
  for (uint32_t i = 0; i < client->n_calls; i++) free(client->calls[i]->own);
}

/* ---- begin ------------------------------------------------------------------------------ */

/* Of tensors that the caller changes before they can be sent. */
static int copy(msi_client *client, msi_call *call) {
  const msi_layout *layout = &call->service->endpoint->layout;
  msi_payload *payload = &call->payload;
  size_t bytes = (size_t)payload->rows * row_bytes(layout);
  uint8_t *to = call->own = malloc(bytes);
  if (!to) return msi_error(MPISERVE_ENOMEM, "no memory for a record of %zu bytes", bytes);
  client->recording.bytes += bytes;
  for (int i = 0; i < layout->inputs.n + layout->outputs.n; i++) {
    int j = i - layout->inputs.n;
    void **tensor = j < 0 ? &payload->inputs[i] : &payload->outputs[j];
    size_t row = j < 0 ? layout->inputs.row_bytes[i] : layout->outputs.row_bytes[j];
    memcpy(to, *tensor, (size_t)payload->rows * row);
    *tensor = to;
    to += (size_t)payload->rows * row;
  }
  return MPISERVE_OK;
}

/* What waits to be sent is sent when the head, or the caller by its next call, goes on. */
static int wait_for_room(msi_client *client, const mpiserve_service *service) {
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && client->recording.bytes > MOST_BYTES) {
    code = msi_call_progress_all(client);
    const msi_endpoint *home = service->endpoint;
    if (!code && (home->lost || home->stopped)) code = msi_endpoint_lost(home);
    if (!code) msi_wait_pause(&wait, &client->backoff, NULL);
  }
  return code;
}

static msi_call *make(mpiserve_service *service, int64_t rows, void *const *inputs,
                      void *const *outputs) {
  msi_call *call = msi_calls_take(service->client);
  if (!call) return NULL;
  const msi_layout *layout = &service->endpoint->layout;
  msi_payload *payload = &call->payload;
  call->message.type = MESSAGE_RECORD;
  call->message.abandoned = 1; /* no handle of the user's is its */
  call->message.endpoint = service->endpoint;
  call->message.code = MPISERVE_OK;
  call->service = service;
  call->kind = MSI_RECORD;
  call->load = NULL;
  call->state = CALL_QUEUED;
  payload->rows = rows;
  payload->priority = 0;
  payload->input = payload->output = (msi_location){.lease = -1};
  memcpy(payload->inputs, inputs, (size_t)layout->inputs.n * sizeof *inputs);
  memcpy(payload->outputs, outputs, (size_t)layout->outputs.n * sizeof *outputs);
  return call;
}

/* The head may still have to answer to its wish for rows. */
static void drop(msi_client *client, msi_call *call, int code) {
  call->message.code = code;
  if (call->state == CALL_LEASING) return;
  msi_send_queue_remove(client, &call->message);
  end(client, call);
}

static int is_unsent(const msi_call *call, uint32_t generation) {
  return call->generation == generation && call->state != CALL_IN_FLIGHT;
}

static int begin(mpiserve_service *service, int64_t rows, void *const *inputs,
                 void *const *outputs) {
  msi_client *client = service->client;
  msi_endpoint *home = service->endpoint;
  if (home->lost || home->stopped) return msi_endpoint_lost(home);
  msi_call *call = make(service, rows, inputs, outputs);
  if (!call) return msi_error(MPISERVE_ENOMEM, "no memory for a record");
  uint32_t generation = call->generation;
  msi_send_queue_push(client, &call->message);
  int code = msi_call_progress(client, home);
  if (!is_unsent(call, generation)) return code;
  int failed = copy(client, call);
  if (failed) drop(client, call, failed);
  return code ? code : failed;
}

static int is_captured(const mpiserve_service *service) {
  return service->client->world->captured && !service->unrecorded &&
         !msi_layout_is_free(&service->endpoint->layout);
}

int msi_recording_put(mpiserve_service *service, int64_t rows, void *const *inputs,
                      void *const *outputs, int *kept) {
  const msi_layout *layout = &service->endpoint->layout;
  void *in[MPISERVE_MAX_TENSORS], *out[MPISERVE_MAX_TENSORS];
  int code = msi_recording_failure(service->client);
  *kept = !code && is_captured(service);
  if (!*kept) return code;
  int64_t most = most_rows(layout);
  if (!most)
    return msi_error(MPISERVE_EARG,
                     "service '%s' overwrites its inputs: a pair needs two rows, and "
                     "max_batch_rows is 1",
                     service->name);
  for (int64_t row = 0; row < rows && !code; row += most) {
    for (int i = 0; i < layout->inputs.n; i++)
      in[i] = (char *)inputs[i] + (size_t)row * layout->inputs.row_bytes[i];
    for (int i = 0; i < layout->outputs.n; i++)
      out[i] = (char *)outputs[i] + (size_t)row * layout->outputs.row_bytes[i];
    code = begin(service, rows - row < most ? rows - row : most, in, out);
    if (!code) code = wait_for_room(service->client, service);
  }
  return code;
}
