#include "client/recording.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/call.h"
#include "client/record_message.h"

enum { MOST_BYTES = 64 << 20 }; /* of copies that wait for one head: then the caller waits */

/* The most rows of one record; 0: not even one can be sent. */
static int64_t most_rows(const msi_layout *layout) {
  int64_t rows = layout->max_rows;
  if (msi_record_rows_behind(layout, rows)) rows /= 2;
  return rows ? rows : msi_record_is_eager(layout, 1);
}

int msi_recording_failure(msi_client *client) {
  int code = client->recording.code;
  client->recording.code = MPISERVE_OK;
  return code ? msi_error(code, "%s", client->recording.text) : MPISERVE_OK;
}

void msi_recording_free(msi_client *client) {
  for (uint32_t i = 0; i < client->n_calls; i++) free(client->calls[i]->own);
}

/* ---- begin ------------------------------------------------------------------------------ */

/* Of tensors that the caller changes before they can be sent. */
static int copy(msi_client *client, msi_call *call) {
  const msi_layout *layout = &call->service->endpoint->layout;
  msi_payload *payload = &call->payload;
  size_t bytes = (size_t)payload->rows * msi_record_row_bytes(layout);
  uint8_t *to = call->own = malloc(bytes);
  if (!to) return msi_error(MPISERVE_ENOMEM, "no memory for a record of %zu bytes", bytes);
  msi_send_queue_of(client, call->message.endpoint)->copied += bytes;
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

static size_t copied(const mpiserve_service *service) {
  return msi_send_queue_of(service->client, service->endpoint)->copied;
}

static int no_room(const mpiserve_service *service, double seconds) {
  char why[MPISERVE_TEXT_SIZE] = "";
  msi_endpoint_why(service->endpoint, why, sizeof why);
  return msi_error(MPISERVE_ETIMEOUT,
                   "service '%s': %zu MiB of recorded rows wait to be sent, and none was taken "
                   "within %g s (MPISERVE_CLOSE_TIMEOUT): %s",
                   service->name, copied(service) >> 20, seconds, why);
}

static int is_gone(const msi_endpoint *home) { return home->lost || home->stopped; }

/* A rank that only records learns here that a head that had stopped goes on. */
static int find_home(mpiserve_service *service) {
  int code = is_gone(service->endpoint) ? msi_call_progress_all(service->client) : MPISERVE_OK;
  if (!code && is_gone(service->endpoint)) code = msi_endpoint_lost(service->endpoint);
  return code;
}

/* Sends what waits for its home, as long as the head takes some. What waits for other heads, which
 * may have stopped, may go on waiting. */
static int wait_for_room(const mpiserve_service *service) {
  msi_client *client = service->client;
  double limit = msi_world_close_limit();
  int64_t deadline = msi_deadline(limit);
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  for (size_t before = copied(service); !code && before > MOST_BYTES; before = copied(service)) {
    code = msi_call_progress_all(client);
    if (!code && is_gone(service->endpoint)) code = msi_endpoint_lost(service->endpoint);
    if (copied(service) < before) deadline = msi_deadline(limit);
    if (code || !msi_wait_pause(&wait, &client->backoff, NULL)) continue;
    if (msi_now() > deadline) code = no_room(service, limit);
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
  call->step = service->client->window->step;
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
  msi_record_end(client, call);
}

static int is_unsent(const msi_call *call, uint32_t generation) {
  return call->generation == generation && call->state != CALL_IN_FLIGHT;
}

static int begin(mpiserve_service *service, int64_t rows, void *const *inputs,
                 void *const *outputs) {
  msi_client *client = service->client;
  int code = find_home(service);
  if (!code) code = wait_for_room(service);
  if (code) return code;
  msi_call *call = make(service, rows, inputs, outputs);
  if (!call) return msi_error(MPISERVE_ENOMEM, "no memory for a record");
  uint32_t generation = call->generation;
  msi_send_queue_push(client, &call->message);
  code = msi_call_progress(client, call->message.endpoint);
  /* A rank that only records learns here that a head has died. */
  if (!code && is_unsent(call, generation)) code = msi_call_progress_all(client);
  if (!is_unsent(call, generation)) return code;
  int failed = copy(client, call);
  if (failed) drop(client, call, failed);
  return code ? code : failed;
}

static int is_captured(const mpiserve_service *service) {
  return service->client->world->captured && !service->unrecorded &&
         !msi_layout_is_free(&service->endpoint->layout);
}

/* The outputs are all that the layout has. */
static int put(mpiserve_service *service, int64_t rows, void *const *inputs, void *const *outputs,
               int64_t most) {
  const msi_layout *layout = &service->endpoint->layout;
  void *in[MPISERVE_MAX_TENSORS], *out[MPISERVE_MAX_TENSORS];
  int code = MPISERVE_OK;
  for (int64_t row = 0; row < rows && !code; row += most) {
    for (int i = 0; i < layout->inputs.n; i++)
      in[i] = (char *)inputs[i] + (size_t)row * layout->inputs.row_bytes[i];
    for (int i = 0; i < layout->outputs.n; i++)
      out[i] = (char *)outputs[i] + (size_t)row * layout->outputs.row_bytes[i];
    code = begin(service, rows - row < most ? rows - row : most, in, out);
  }
  return code;
}

/* No model was asked, so there is no number for its uncertainty. */
static int put_certain(mpiserve_service *service, int64_t rows, void *const *inputs,
                       void *const *outputs, int64_t most) {
  int n = msi_side_seen(&service->endpoint->layout.outputs);
  void *all[MPISERVE_MAX_TENSORS];
  float *nan = malloc((size_t)(rows + 1) * sizeof *nan);
  if (!nan) return msi_error(MPISERVE_ENOMEM, "no memory to record %lld rows", (long long)rows);
  for (int64_t row = 0; row < rows; row++) nan[row] = NAN;
  memcpy(all, outputs, (size_t)n * sizeof *outputs);
  all[n] = nan;
  int code = put(service, rows, inputs, all, most);
  free(nan);
  return code;
}

int msi_recording_put(mpiserve_service *service, int64_t rows, void *const *inputs,
                      void *const *outputs, int *kept) {
  const msi_layout *layout = &service->endpoint->layout;
  int code = msi_recording_failure(service->client);
  if (code || !is_captured(service)) return code;
  int64_t most = most_rows(layout);
  if (!most)
    return msi_error(MPISERVE_EARG,
                     "service '%s' overwrites its inputs: a pair needs two rows, and "
                     "max_batch_rows is 1",
                     service->name);
  code = layout->outputs.n_hidden ? put_certain(service, rows, inputs, outputs, most)
                                  : put(service, rows, inputs, outputs, most);
  *kept = !code;
  return code;
}

void msi_recording_add(mpiserve_service *service, int64_t rows, void *const *inputs,
                       void *const *outputs) {
  /* The program has not asked for these pairs: it does not wait for them, and a death that it
   * survives is no error of its close because of them. */
  if (!is_captured(service) || is_gone(service->endpoint) || copied(service) > MOST_BYTES) return;
  int code = put(service, rows, inputs, outputs, service->endpoint->layout.max_rows);
  if (code) msi_record_note(service, rows, code, mpiserve_last_error());
}
