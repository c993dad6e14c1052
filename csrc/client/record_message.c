#include "client/record_message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/lease.h"

/* ---- where a pair lies --------------------------------------------------------------- */

size_t msi_record_row_bytes(const msi_layout *layout) {
  return layout->inputs.total_row_bytes + layout->outputs.total_row_bytes;
}

/* Both sides are in the half of the slot that the client writes, or both in the slabs. */
int msi_record_is_eager(const msi_layout *layout, int64_t rows) {
  return (size_t)rows * msi_record_row_bytes(layout) <= layout->inputs.slot_bytes;
}

/* Where results take the place of the inputs, the outputs of a pair lie in rows behind these. */
int64_t msi_record_rows_behind(const msi_layout *layout, int64_t rows) {
  return layout->outputs_at[0] == layout->inputs_at[0] ? rows : 0;
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

/* ---- from begin to end ------------------------------------------------------------------ */

/* It waits for another endpoint from now on, or (NULL) for none. */
static void move_copy(msi_client *client, const msi_call *call, const msi_endpoint *to) {
  if (!call->own) return;
  const msi_endpoint *from = call->message.endpoint;
  size_t bytes = (size_t)call->payload.rows * msi_record_row_bytes(&from->layout);
  msi_send_queue_of(client, from)->copied -= bytes;
  if (to) msi_send_queue_of(client, to)->copied += bytes;
}

static void drop_copy(msi_client *client, msi_call *call) {
  move_copy(client, call, NULL);
  free(call->own);
  call->own = NULL;
}

void msi_record_end(msi_client *client, msi_call *call) {
  drop_copy(client, call);
  msi_lease_let_go(call->message.endpoint, &call->payload.input);
  msi_lease_let_go(call->message.endpoint, &call->payload.output);
  call->message.type = MESSAGE_REQUEST;
  msi_calls_give(client, call);
}

static void hold(msi_endpoint *endpoint, msi_payload *payload, int lease) {
  msi_lease_hold(endpoint, &payload->input, lease);
  msi_lease_hold(endpoint, &payload->output, lease);
  payload->output.row = (uint32_t)msi_record_rows_behind(&endpoint->layout, payload->rows);
}

/* Returns whether it has rows now. */
static int find_rows(msi_call *call, int *code) {
  msi_endpoint *endpoint = call->message.endpoint;
  int64_t rows = call->payload.rows;
  if (call->payload.input.lease >= 0 || msi_record_is_eager(&endpoint->layout, rows)) return 1;
  rows += msi_record_rows_behind(&endpoint->layout, rows);
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

/* That may be in a later time step of this rank than the one of the pair. */
static int send(msi_endpoint *endpoint, msi_call *call) {
  int64_t *step = &endpoint->path.window->step, now = *step;
  *step = call->step;
  int code =
      msi_endpoint_infer(endpoint, MSI_RECORD, &call->payload, &call->message, &call->sequence);
  *step = now;
  return code;
}

int msi_record_step(msi_client *client, msi_call *call, int *next) {
  msi_endpoint *endpoint = call->message.endpoint;
  int code = MPISERVE_OK;
  *next = 0;
  if (!find_rows(call, &code)) return code;
  code = write_outputs(endpoint, &call->payload);
  if (!code) code = send(endpoint, call);
  if (code) return code == MSI_NOT_YET ? MPISERVE_OK : code;
  msi_send_queue_remove(client, &call->message);
  call->state = CALL_IN_FLIGHT;
  drop_copy(client, call);
  *next = 1;
  return code;
}

void msi_record_replied(msi_client *client, msi_call *call, const msi_reply_header *reply) {
  if (reply->code) note(client, call, reply->code, call->message.text);
  if (call->state == CALL_LEASING) {
    msi_lease_granted(call->message.endpoint, call->payload.input.lease, reply);
    call->state = CALL_QUEUED;
    if (!reply->code && !call->message.code) return;
    msi_send_queue_remove(client, &call->message);
  } else if (!reply->code && !reply->rows) {
    call->service->unrecorded = 1;
  }
  msi_record_end(client, call);
}

void msi_record_lost(msi_client *client, msi_call *call) {
  msi_endpoint *home = call->service->endpoint, *before = call->message.endpoint;
  int dropped = call->message.code; /* its tensors are the caller's, who may have changed them */
  if (call->state == CALL_IN_FLIGHT || dropped || home->lost || home->stopped) {
    int code = msi_endpoint_lost(before);
    note(client, call, code, mpiserve_last_error());
    msi_record_end(client, call);
    return;
  }
  msi_lease_let_go(before, &call->payload.input);
  msi_lease_let_go(before, &call->payload.output);
  move_copy(client, call, home);
  call->message.endpoint = home;
  call->state = CALL_QUEUED;
  msi_send_queue_push(client, &call->message);
}
