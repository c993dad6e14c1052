#include "client/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/lease.h"
#include "client/reroute.h"

enum { TESTS_PER_LOOK = 16 }; /* at all endpoints */

/* ---- calls ------------------------------------------------------------------- */

static msi_call *call_take(msi_client *client) {
  if (!client->idle) {
    msi_call **calls = realloc(client->calls, (client->n_calls + 1) * sizeof *calls);
    if (!calls) return NULL;
    client->calls = calls;
    msi_call *call = calloc(1, sizeof *call);
    if (!call) return NULL;
    call->index = client->n_calls;
    client->calls[client->n_calls++] = call;
    client->idle = call;
  }
  msi_call *call = client->idle;
  client->idle = call->next;
  call->next = NULL;
  call->service = NULL;
  call->abandoned = 0;
  call->payload.deadline_ns = 0;
  call->stats = (mpiserve_stats){0}; /* of the request that had the place before */
  call->text[0] = 0;
  return call;
}

static void call_give(msi_client *client, msi_call *call) {
  call->state = CALL_IDLE;
  call->generation++;
  call->next = client->idle;
  client->idle = call;
}

static msi_call *call_find(const msi_client *client, const mpiserve_request *request) {
  uint32_t index = (uint32_t)request->id - 1, generation = (uint32_t)(request->id >> 32);
  if (!request->id || index >= client->n_calls) return NULL;
  msi_call *call = client->calls[index];
  if (call->generation != generation || call->state == CALL_IDLE || call->abandoned) return NULL;
  return call;
}

static mpiserve_request request_of(const msi_call *call) {
  return (mpiserve_request){(uint64_t)call->generation << 32 | (call->index + 1)};
}

static msi_line *line_of(msi_client *client, const msi_endpoint *endpoint) {
  return &client->lines[endpoint - client->endpoints];
}

static void line_push(msi_line *line, msi_call *call) {
  *(line->first ? &line->last->next : &line->first) = call;
  line->last = call;
}

static void line_remove(msi_line *line, msi_call *call) {
  msi_call *before = NULL;
  for (msi_call *c = line->first; c != call; c = c->next) before = c;
  *(before ? &before->next : &line->first) = call->next;
  if (line->last == call) line->last = before;
  call->next = NULL;
}

/* ---- from submit to end ---------------------------------------------------------- */

static void call_end(msi_client *client, msi_call *call, int code) {
  if (call->load) msi_balance_ended(call->load, call->payload.rows);
  msi_lease_let_go(call->endpoint, &call->payload.input);
  msi_lease_let_go(call->endpoint, &call->payload.output);
  call->code = code;
  call->state = CALL_DONE;
  call->stats.rows = call->payload.rows;
  if (call->submitted_ns) call->stats.total_ns = msi_now() - call->submitted_ns;
  client->counters.requests++;
  client->counters.rows += call->payload.rows;
  client->counters.errors += code != MPISERVE_OK;
  if (call->abandoned) call_give(client, call);
}

static int is_late(const msi_call *call) {
  return call->payload.deadline_ns && msi_now() >= call->payload.deadline_ns;
}

static int end_unsent(msi_client *client, msi_call *call) {
  line_remove(line_of(client, call->endpoint), call);
  snprintf(call->text, sizeof call->text,
           "the deadline passed while earlier requests of this rank were under way");
  call_end(client, call, MPISERVE_EDEADLINE);
  return MPISERVE_OK;
}

static int ask_rows(msi_call *call, int at) {
  call->state = CALL_LEASING;
  return msi_lease_ask(call->endpoint, &call->payload, at, call);
}

/* Takes the next step of the first call in line. *next is 0 if it has to wait. */
static int step(msi_client *client, msi_line *line, msi_call *call, int *next) {
  msi_endpoint *endpoint = call->endpoint;
  *next = 1;
  if (is_late(call)) return end_unsent(client, call);
  *next = 0;
  if (msi_lease_wanted(endpoint, &call->payload)) {
    int at = msi_endpoint_find_lease(endpoint, call->payload.rows);
    if (at < 0) {
      at = msi_endpoint_spare_lease(endpoint);
      return at < 0 || !msi_lease_may_ask(endpoint) ? MPISERVE_OK : ask_rows(call, at);
    }
    msi_lease_hold_for_both(endpoint, &call->payload, at);
  }
  int code = msi_endpoint_infer(endpoint, call->kind, &call->payload, call, &call->sequence);
  if (code) return code;
  line_remove(line, call);
  call->state = CALL_FLYING;
  *next = 1;
  return code;
}

static int send_order(msi_line *line, msi_call *call) {
  line_remove(line, call);
  call->state = CALL_CONTROL;
  return msi_endpoint_send(call->endpoint, MSI_CHANGE, 0, call->what, call->text, call);
}

static int can_send(const msi_endpoint *endpoint, const msi_line *line) {
  return line->first && line->first->state <= CALL_ORDER && msi_endpoint_can_send(endpoint);
}

/* Sends what can be sent, in order: none passes one that was submitted before it. Rows are given
 * back after each: one that ends unsent may leave some that the next one waits for. */
static int advance(msi_client *client, msi_endpoint *endpoint) {
  msi_line *line = line_of(client, endpoint);
  int code = msi_lease_give_back(endpoint), next = 1;
  while (!code && next && can_send(endpoint, line)) {
    code = line->first->state == CALL_ORDER ? send_order(line, line->first)
                                            : step(client, line, line->first, &next);
    if (!code) code = msi_lease_give_back(endpoint);
  }
  return code;
}

/* Is something to be sent that no reply will remind us of? */
static int has_unsent(msi_client *client, const msi_endpoint *endpoint) {
  return endpoint->stale || line_of(client, endpoint)->first;
}

static void lease_granted(msi_endpoint *endpoint, int at, const msi_reply_header *reply) {
  msi_lease *lease = &endpoint->leases[at];
  lease->begin = reply->lease_begin;
  lease->rows = reply->rows;
  lease->once = (int)reply->lease_once;
  lease->renewed = 1;
}

/* The head has granted rows, or refused. */
static void on_lease(msi_client *client, msi_call *call, const msi_reply_header *reply) {
  int input = call->payload.input.lease;
  int at = input >= 0 && input < MSI_SLOTS ? input : call->payload.output.lease;
  lease_granted(call->endpoint, at, reply);
  call->state = CALL_QUEUED;
  if (!reply->code && !call->abandoned) return;
  line_remove(line_of(client, call->endpoint), call);
  call_end(client, call, reply->code);
}

static void on_keep(msi_call *call, const msi_reply_header *reply) {
  int at = call->payload.input.lease;
  lease_granted(call->endpoint, at, reply);
  call->endpoint->leases[at].users = 0;
  call->code = reply->code;
  call->state = CALL_DONE;
}

static void on_control(msi_client *client, msi_call *call, const msi_reply_header *reply) {
  call->code = reply->code;
  call->state = CALL_DONE;
  if (call->abandoned) call_give(client, call);
}

static void on_result(msi_client *client, msi_call *call, int slot) {
  msi_endpoint *endpoint = call->endpoint;
  const msi_reply_header *reply = &endpoint->path.slots[slot].reply;
  call->stats = (mpiserve_stats){.batch_rows = reply->rows,
                                 .batch_requests = reply->requests,
                                 .generation = reply->generation,
                                 .queue_ns = reply->queue_ns,
                                 .compute_ns = reply->compute_ns};
  int code = reply->code;
  if (!code && call->load)
    msi_balance_measure(call->load, call->payload.rows, reply->rows, reply->waiting_rows,
                        reply->compute_ns);
  if (!code && !call->abandoned) code = msi_endpoint_outputs(endpoint, slot, &call->payload);
  call_end(client, call, code);
}

/* Copies the text of an error before the slot is used again. */
static void keep_text(msi_call *call, const msi_endpoint *endpoint, int slot) {
  const msi_reply_header *reply = &endpoint->path.slots[slot].reply;
  size_t bytes = reply->text_bytes <= MSI_EAGER_BYTES ? reply->text_bytes : MSI_EAGER_BYTES;
  memcpy(call->text, endpoint->path.slots[slot].output, bytes);
  call->text[bytes] = 0;
}

/* The service rests at that head: the request goes to the end of another line. */
static void on_suspended(msi_client *client, msi_call *call) {
  int code = msi_again(call);
  if (!code) {
    call->state = CALL_QUEUED;
    line_push(line_of(client, call->endpoint), call);
    code = advance(client, call->endpoint);
    if (!code || call->state != CALL_QUEUED) return;
    line_remove(line_of(client, call->endpoint), call);
    snprintf(call->text, sizeof call->text, "%s", mpiserve_last_error());
  }
  call_end(client, call, code);
}

/* Is a reply with a code to be dealt with as others are? */
static int on_code(msi_client *client, msi_call *call, int slot) {
  if (call->endpoint->path.slots[slot].reply.code == MSI_SUSPENDED) {
    on_suspended(client, call);
    return 0;
  }
  keep_text(call, call->endpoint, slot);
  return 1;
}

static void on_reply(msi_client *client, msi_endpoint *endpoint, int slot) {
  msi_call *call = endpoint->owners[slot];
  const msi_reply_header *reply = &endpoint->path.slots[slot].reply;
  if (call && reply->code && !on_code(client, call, slot)) call = NULL;
  if (call && call->state == CALL_LEASING)
    on_lease(client, call, reply);
  else if (call && call->state == CALL_KEEPING)
    on_keep(call, reply);
  else if (call && call->state == CALL_CONTROL)
    on_control(client, call, reply);
  else if (call)
    on_result(client, call, slot);
  msi_endpoint_release(endpoint, slot);
}

int msi_call_progress(msi_client *client, msi_endpoint *endpoint) {
  int code = msi_endpoint_progress(endpoint);
  int slot, any = 0;
  while (!code && (slot = msi_endpoint_reply(endpoint)) >= 0) {
    on_reply(client, endpoint, slot);
    any = 1;
  }
  return !code && (any || has_unsent(client, endpoint)) ? advance(client, endpoint) : code;
}

int msi_call_progress_all(msi_client *client) {
  int code = msi_window_progress(client->window);
  for (int i = 0; i < client->n_endpoints && !code; i++) {
    msi_endpoint *endpoint = &client->endpoints[i];
    if (endpoint->in_flight || has_unsent(client, endpoint))
      code = msi_call_progress(client, endpoint);
  }
  return code;
}

int msi_call_wait_free(msi_client *client, msi_endpoint *endpoint) {
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && !msi_endpoint_can_send(endpoint)) {
    code = msi_call_progress(client, endpoint);
    if (!code && msi_wait_pause(&wait, &client->backoff, NULL))
      code = msi_call_progress_all(client);
  }
  return code;
}

/* ---- what callers do ------------------------------------------------------------ */

static void load(msi_call *call, int64_t rows, void *const *inputs, void *const *outputs) {
  msi_payload *payload = &call->payload;
  payload->rows = rows;
  memcpy(payload->inputs, inputs, (size_t)call->endpoint->layout.inputs.n * sizeof *inputs);
  memcpy(payload->outputs, outputs, (size_t)call->endpoint->layout.outputs.n * sizeof *outputs);
  msi_lease_locate(call->endpoint, payload);
}

static void want(msi_call *call, const mpiserve_options *options) {
  call->payload.priority = (int8_t)(options ? options->priority : 0);
  if (!options || options->deadline == 0 || options->deadline > 9e8) return;
  call->payload.deadline_ns = msi_deadline(options->deadline);
}

/* A call that has not been sent ends here. */
static void withdraw(msi_client *client, msi_call *call) {
  line_remove(line_of(client, call->endpoint), call);
  if (call->load) msi_balance_ended(call->load, call->payload.rows);
  msi_lease_let_go(call->endpoint, &call->payload.input);
  msi_lease_let_go(call->endpoint, &call->payload.output);
  call_give(client, call);
}

/* The caller gets no request, so that nobody may touch its tensors any more. */
static void give_up(msi_client *client, msi_call *call) {
  if (call->state == CALL_QUEUED)
    withdraw(client, call);
  else if (call->state == CALL_DONE)
    call_give(client, call);
  else
    call->abandoned = 1;
}

/* Memory that is used in place belongs to home. */
static int bound_to_home(const mpiserve_service *service, int64_t rows, void *const *inputs,
                         void *const *outputs) {
  msi_location location;
  return msi_endpoint_find_location(service->endpoint, 0, rows, inputs, &location) ||
         msi_endpoint_find_location(service->endpoint, 1, rows, outputs, &location);
}

/* Batches of the replica that is left need not wait for us. Its slots are all taken by what
 * it has not answered yet: then its census finds out by itself. */
static int leave_seat(msi_client *client, msi_endpoint *endpoint) {
  int code = msi_call_progress(client, endpoint);
  return code || !msi_endpoint_can_send(endpoint)
             ? code
             : msi_endpoint_send(endpoint, MSI_DEPART, 0, -1, NULL, NULL);
}

/* A client counts in one census: where it asked last, but for what it asks elsewhere while
 * requests of its own are under way there. */
static int aim(mpiserve_service *service, msi_call *call, int64_t rows, int chosen) {
  call->endpoint = service->choices[chosen];
  call->load = &service->balance.loads[chosen];
  int code = MPISERVE_OK, busy = service->balance.loads[service->seat].rows > 0;
  if (chosen != service->seat && !busy && !call->load->suspended) {
    code = leave_seat(service->client, service->choices[service->seat]);
    service->seat = chosen;
  }
  call->kind = chosen == service->seat ? MSI_INFER : MSI_VISIT;
  if (!code) msi_balance_sent(&service->balance, chosen, rows);
  return code;
}

static int choose(mpiserve_service *service, msi_call *call, int64_t rows, void *const *inputs,
                  void *const *outputs) {
  call->endpoint = service->endpoint;
  call->kind = MSI_INFER;
  call->load = NULL;
  if (service->balance.n < 2) return MPISERVE_OK;
  int home = service->balance.home;
  return aim(service, call, rows,
             bound_to_home(service, rows, inputs, outputs) &&
                     !service->balance.loads[home].suspended
                 ? home
                 : msi_balance_choose(&service->balance, rows));
}

int msi_call_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                    void *const *outputs, const mpiserve_options *options, int timed,
                    mpiserve_request *request) {
  msi_client *client = service->client;
  msi_call *call = call_take(client);
  if (!call) return msi_error(MPISERVE_ENOMEM, "no memory for a request");
  call->submitted_ns = timed ? msi_now() : 0;
  call->service = service;
  int code = choose(service, call, rows, inputs, outputs);
  if (code) {
    call_give(client, call);
    return code;
  }
  load(call, rows, inputs, outputs);
  want(call, options);
  call->state = CALL_QUEUED;
  line_push(line_of(client, call->endpoint), call);
  code = advance(client, call->endpoint);
  if (code)
    give_up(client, call);
  else
    *request = request_of(call);
  return code;
}

/* What is told to the caller, once. */
static int report(msi_client *client, msi_call *call, mpiserve_request *request,
                  mpiserve_stats *stats) {
  int code = call->code;
  if (stats) *stats = call->stats;
  if (code) msi_error(code, "%s", call->text[0] ? call->text : mpiserve_strerror(code));
  *request = (mpiserve_request){0};
  call_give(client, call);
  return code;
}

static int overdue(const msi_call *call) {
  if (!is_late(call)) return MPISERVE_OK;
  return msi_error(MPISERVE_EDEADLINE, "no reply from rank %d by the deadline of the request",
                   call->endpoint->path.head);
}

/* Nobody wakes us there any more: naps it is. */
static const msi_wait_address *get_up(msi_wait *wait, const msi_wait_address *address) {
  if (address) msi_wait_end(wait, address);
  wait->armed = 0;
  return NULL;
}

/* A client that tests one request for long has others too: rows to give back, what to send. */
static int not_ended(msi_client *client) {
  int code = ++client->tests % TESTS_PER_LOOK ? MPISERVE_OK : msi_call_progress_all(client);
  return code ? code : msi_error(MPISERVE_ETIMEOUT, "the request has not ended yet");
}

static int wait_until_done(msi_client *client, msi_call *call, double timeout, msi_wait *wait,
                           const msi_wait_address *address) {
  int64_t deadline = 0;
  const msi_endpoint *endpoint = call->endpoint;
  for (;;) {
    int code = msi_call_progress(client, call->endpoint);
    if (code || call->state == CALL_DONE) return code;
    int paused = timeout == 0 || msi_wait_pause(wait, &client->backoff, address);
    if (!paused) continue;
    if (call->endpoint != endpoint)
      address = get_up(wait, address); /* it was sent to another replica */
    code = overdue(call);
    if (code) return code;
    if (timeout == 0) return not_ended(client);
    if (!deadline) deadline = msi_deadline(timeout);
    if (msi_now() > deadline)
      return msi_error(MPISERVE_ETIMEOUT, "no reply from rank %d within %g s",
                       call->endpoint->path.head, timeout);
    code = msi_call_progress_all(client);
    if (code) return code;
  }
}

int msi_call_wait(msi_client *client, mpiserve_request *request, double timeout,
                  mpiserve_stats *stats) {
  msi_call *call = call_find(client, request);
  if (!call) return msi_error(MPISERVE_ESTATE, "no such request: it has ended, or never was");
  msi_wait wait = {0};
  msi_wait_address address;
  int addressed = call->state == CALL_FLYING &&
                  msi_endpoint_wait_address(call->endpoint, call->sequence, &address);
  int code = wait_until_done(client, call, timeout, &wait, addressed ? &address : NULL);
  msi_wait_end(&wait, &address);
  if (!code) return report(client, call, request, stats);
  if (code == MPISERVE_EDEADLINE) {
    if (stats) stats->rows = call->payload.rows; /* it has ended, with nothing more to tell */
    msi_call_cancel(client, request);
  }
  return code;
}

int msi_call_cancel(msi_client *client, mpiserve_request *request) {
  msi_call *call = call_find(client, request);
  if (!call) return msi_error(MPISERVE_ESTATE, "no such request: it has ended, or never was");
  *request = (mpiserve_request){0};
  /* Other orders than to load are given still: replicas would be left with two versions. */
  if (call->state == CALL_QUEUED || (call->state == CALL_ORDER && call->what == MPISERVE_LOAD)) {
    msi_endpoint *endpoint = call->endpoint;
    withdraw(client, call);
    return advance(client, endpoint);
  }
  if (call->state == CALL_DONE) {
    call_give(client, call);
    return MPISERVE_OK;
  }
  call->abandoned = 1;
  return call->state == CALL_FLYING ? msi_endpoint_cancel(call->endpoint, call->sequence)
                                    : MPISERVE_OK;
}

void msi_call_cancel_all(msi_client *client) {
  for (uint32_t i = 0; i < client->n_calls; i++) {
    mpiserve_request request = request_of(client->calls[i]);
    if (call_find(client, &request)) msi_call_cancel(client, &request);
  }
}

int msi_call_keep(msi_client *client, msi_endpoint *endpoint, int lease, int64_t rows) {
  int code = msi_call_wait_free(client, endpoint);
  if (code) return code;
  msi_call *call = call_take(client);
  if (!call) return msi_error(MPISERVE_ENOMEM, "no memory for a request");
  call->endpoint = endpoint;
  call->state = CALL_KEEPING;
  call->payload.input = (msi_location){.lease = lease};
  code = msi_endpoint_send(endpoint, MSI_KEEP, rows, lease, NULL, call);
  if (code) {
    call_give(client, call);
    return code;
  }
  mpiserve_request request = request_of(call);
  return msi_call_wait(client, &request, MPISERVE_FOREVER, NULL);
}

int msi_call_change(msi_client *client, msi_endpoint *endpoint, int what, const char *version,
                    mpiserve_request *request) {
  msi_call *call = call_take(client);
  if (!call) return msi_error(MPISERVE_ENOMEM, "no memory for a request");
  call->endpoint = endpoint;
  call->load = NULL;
  call->payload.input = call->payload.output = (msi_location){.lease = -1};
  call->what = what;
  snprintf(call->text, sizeof call->text, "%s", version ? version : "");
  call->state = CALL_ORDER;
  line_push(line_of(client, endpoint), call);
  *request = request_of(call);
  return advance(client, endpoint);
}

int msi_call_give_buffer(msi_client *client, msi_endpoint *endpoint, int lease) {
  if (!endpoint->path.transport->same_node) {
    msi_endpoint_free_buffer(endpoint, lease);
    endpoint->leases[lease] = (msi_lease){0};
    return MPISERVE_OK;
  }
  msi_lease_end(endpoint, lease);
  return advance(client, endpoint);
}

void msi_call_close(msi_client *client) {
  for (uint32_t i = 0; i < client->n_calls; i++) free(client->calls[i]);
  free(client->calls);
}
