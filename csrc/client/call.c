#include "client/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "client/census.h"
#include "client/change.h"
#include "client/fallback.h"
#include "client/free_dims.h"
#include "client/lease.h"
#include "client/loss.h"
#include "client/record_message.h"
#include "client/reroute.h"
#include "client/spare.h"
#include "client/stopped.h"
#include "client/timing.h"
#include "client/uncertainty.h"

enum { TESTS_PER_LOOK = 16 }; /* at all endpoints */

/* ---- from submit to end ---------------------------------------------------------- */

static void call_end(msi_client *client, msi_call *call, int code) {
  if (MSI_PROFILED) msi_timing_ended(call); /* where its results lie is known until here */
  if (call->load) msi_balance_ended(call->load, call->payload.rows);
  msi_lease_let_go(call->message.endpoint, &call->payload.input);
  msi_lease_let_go(call->message.endpoint, &call->payload.output);
  call->message.code = code;
  call->state = CALL_DONE;
  call->stats.rows = call->payload.rows;
  if (call->submitted_ns && !MSI_PROFILED) call->stats.total_ns = msi_now() - call->submitted_ns;
  mpiserve_counters *counters = &client->metrics->counters;
  counters->requests++;
  counters->rows += call->payload.rows;
  if (__builtin_expect(code, MPISERVE_OK)) counters->errors++;
  if (call->message.abandoned) msi_calls_give(client, call);
}

static int is_late(const msi_call *call) {
  return call->payload.deadline_ns && msi_now() >= call->payload.deadline_ns;
}

static int end_unsent(msi_client *client, msi_call *call) {
  msi_send_queue_remove(client, &call->message);
  snprintf(call->message.text, sizeof call->message.text,
           "the deadline passed while earlier requests of this rank were under way");
  call_end(client, call, MPISERVE_EDEADLINE);
  return MPISERVE_OK;
}

static int ask_rows(msi_call *call, int at) {
  call->state = CALL_LEASING;
  return msi_lease_ask(call->message.endpoint, &call->payload, at, &call->message);
}

/* Takes the next step of the first request in a send queue. *next is 0 if it has to wait. */
static int step(msi_client *client, msi_call *call, int *next) {
  msi_endpoint *endpoint = call->message.endpoint;
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
  if (MSI_PROFILED) msi_timing_send(call);
  int code =
      msi_endpoint_infer(endpoint, call->kind, &call->payload, &call->message, &call->sequence);
  if (code) return code == MSI_NOT_YET ? MPISERVE_OK : code;
  if (MSI_PROFILED) msi_timing_sent(call);
  msi_send_queue_remove(client, &call->message);
  call->state = CALL_IN_FLIGHT;
  *next = 1;
  return code;
}

/* Sends the first message, or takes a step towards it. *next is 0 if it has to wait. */
static int send_first(msi_client *client, msi_message *first, int *next) {
  if (first->type == MESSAGE_REQUEST) return step(client, (msi_call *)first, next);
  if (first->type == MESSAGE_RECORD) return msi_record_step(client, (msi_call *)first, next);
  msi_send_queue_remove(client, first);
  return msi_change_send((msi_change *)first);
}

static int can_send(const msi_endpoint *endpoint, const msi_send_queue *queue) {
  return queue->first && !msi_message_is_leasing(queue->first) && msi_endpoint_can_send(endpoint);
}

/* Sends what can be sent, in order: no message passes an earlier one. Rows are given back after
 * each: one that ends unsent may leave some that the next one waits for. */
static int advance(msi_client *client, msi_endpoint *endpoint) {
  const msi_send_queue *queue = msi_send_queue_of(client, endpoint);
  int code = msi_lease_give_back(endpoint), next = 1;
  while (!code && next && can_send(endpoint, queue)) {
    code = send_first(client, queue->first, &next);
    if (!code) code = msi_lease_give_back(endpoint);
  }
  return code;
}

/* Is there something to send, even if no reply comes? */
static int has_unsent(msi_client *client, const msi_endpoint *endpoint) {
  return endpoint->stale || msi_send_queue_of(client, endpoint)->first;
}

/* The head has granted rows, or refused. */
static void on_lease(msi_client *client, msi_call *call, const msi_reply_header *reply) {
  int input = call->payload.input.lease;
  int at = input >= 0 && input < MSI_SLOTS ? input : call->payload.output.lease;
  msi_lease_granted(call->message.endpoint, at, reply);
  call->state = CALL_QUEUED;
  if (!reply->code && !call->message.abandoned) return;
  msi_send_queue_remove(client, &call->message);
  call_end(client, call, reply->code);
}

/* Did its head die before they were fetched? Its loss, which sees to spares first, finds it. */
static int queue_if_lost(msi_client *client, msi_call *call, int code, int replied) {
  if (code != MPISERVE_EPEER || replied) return 0;
  call->arriving = 1;
  msi_lease_locate(call->message.endpoint, &call->payload);
  call->state = CALL_QUEUED;
  msi_send_queue_push(client, &call->message);
  return 1;
}

/* Returns whether the slot is done with. */
static int on_result(msi_client *client, msi_call *call, int slot) {
  msi_endpoint *endpoint = call->message.endpoint;
  const msi_reply_header *reply = &endpoint->path.slots[slot].reply;
  if (MSI_PROFILED && endpoint->fetching != slot + 1) msi_timing_seen(call, slot);
  int code = reply->code;
  if (!code && !call->message.abandoned)
    code = msi_layout_is_free(&endpoint->layout)
               ? msi_free_dims_results(call, slot)
               : msi_endpoint_outputs(endpoint, slot, &call->payload, &endpoint->layout.outputs);
  call->arriving |= code == MSI_NOT_YET;
  if (code == MSI_NOT_YET) return 0;
  call->stats = (mpiserve_stats){.batch_rows = reply->rows,
                                 .batch_requests = reply->requests,
                                 .generation = reply->generation,
                                 .queue_ns = reply->queue_ns,
                                 .compute_ns = reply->compute_ns};
  if (!reply->code) call->service->generation = reply->generation;
  if (!reply->code && call->load)
    msi_balance_measure(call->load, call->payload.rows, reply->rows, reply->waiting_rows,
                        reply->compute_ns);
  if (!queue_if_lost(client, call, code, reply->code)) call_end(client, call, code);
  return 1;
}

/* That head has suspended the service, has died or has stopped: another one gets the request. */
static void send_elsewhere(msi_client *client, msi_call *call) {
  int from = call->message.endpoint->path.head, code = msi_reroute(client, call);
  if (!code) {
    if (MSI_PROFILED) msi_timing_moved(client, call, from);
    call->state = CALL_QUEUED;
    msi_send_queue_push(client, &call->message);
    code = advance(client, call->message.endpoint);
    if (!code || call->state != CALL_QUEUED) return;
    msi_send_queue_remove(client, &call->message);
    snprintf(call->message.text, sizeof call->message.text, "%s", mpiserve_last_error());
  }
  call_end(client, call, code);
}

static int on_request(msi_client *client, msi_call *call, int slot) {
  const msi_reply_header *reply = &call->message.endpoint->path.slots[slot].reply;
  if (reply->code == MSI_SUSPENDED)
    send_elsewhere(client, call);
  else if (call->state == CALL_LEASING)
    on_lease(client, call, reply);
  else
    return on_result(client, call, slot);
  return 1;
}

/* Returns whether the slot is free: results from another node may not have arrived. */
static int on_reply(msi_client *client, msi_endpoint *endpoint, int slot) {
  msi_message *message = endpoint->owners[slot];
  const msi_reply_header *reply = &endpoint->path.slots[slot].reply;
  if (message && reply->code && reply->code != MSI_SUSPENDED) msi_message_keep_text(message, slot);
  int done = 1;
  if (message && message->type == MESSAGE_REQUEST)
    done = on_request(client, (msi_call *)message, slot);
  else if (message && message->type == MESSAGE_CHANGE)
    msi_spare_replied(client, (msi_change *)message, reply->code);
  else if (message && message->type == MESSAGE_RECORD)
    msi_record_replied(client, (msi_call *)message, reply);
  else if (message)
    msi_buffer_replied((msi_buffer_request *)message, reply);
  else
    msi_stopped_settle(client, endpoint, slot);
  if (done) msi_endpoint_release(endpoint, slot);
  return done;
}

static int take_replies(msi_client *client, msi_endpoint *endpoint) {
  int slot, any = 0;
  while ((slot = msi_endpoint_reply(endpoint)) >= 0 && on_reply(client, endpoint, slot)) any = 1;
  return any;
}

int msi_call_progress(msi_client *client, msi_endpoint *endpoint) {
  int code = msi_endpoint_progress(endpoint);
  int any = !code && take_replies(client, endpoint);
  return !code && (any || has_unsent(client, endpoint)) ? advance(client, endpoint) : code;
}

static void on_loss(msi_client *client, msi_message *message) {
  if (message->type == MESSAGE_REQUEST) {
    send_elsewhere(client, (msi_call *)message);
    return;
  }
  if (message->type == MESSAGE_RECORD) {
    msi_record_lost(client, (msi_call *)message);
    return;
  }
  int code = msi_endpoint_lost(message->endpoint);
  snprintf(message->text, sizeof message->text, "%s", mpiserve_last_error());
  if (message->type == MESSAGE_CHANGE) {
    msi_spare_replied(client, (msi_change *)message, code);
    return;
  }
  message->code = code;
  ((msi_buffer_request *)message)->done = 1;
}

/* What a head has answered before is there on its node. Elsewhere results would have to be fetched
 * from it, and MPI reports success for that too: nothing there is of use. */
static void see_to_losses(msi_client *client) {
  msi_endpoint *endpoint;
  msi_message *message;
  while ((endpoint = msi_loss_next(client))) {
    if (endpoint->path.transport->same_node) take_replies(client, endpoint);
    msi_spare_replace(client, endpoint);
    while ((message = msi_loss_take(client, endpoint))) on_loss(client, message);
    msi_loss_end(client, endpoint);
  }
}

int msi_call_progress_all(msi_client *client) {
  int code = msi_window_progress(client->window);
  see_to_losses(client);
  for (int i = 0; i < client->n_endpoints && !code; i++) {
    msi_endpoint *endpoint = &client->endpoints[i];
    if (endpoint->in_flight || has_unsent(client, endpoint))
      code = msi_call_progress(client, endpoint);
  }
  return code;
}

/* ---- submit, wait, cancel -------------------------------------------------------- */

static void set_options(msi_call *call, const mpiserve_options *options) {
  call->payload.priority = (int8_t)(options ? options->priority : 0);
  if (options) call->trusted = options->trusted;
  if (!options || options->deadline == 0 || options->deadline > 9e8) return;
  call->payload.deadline_ns = msi_deadline(options->deadline);
}

/* Ends a request that has not been sent. */
static void withdraw(msi_client *client, msi_call *call) {
  msi_send_queue_remove(client, &call->message);
  if (call->load) msi_balance_ended(call->load, call->payload.rows);
  msi_lease_let_go(call->message.endpoint, &call->payload.input);
  msi_lease_let_go(call->message.endpoint, &call->payload.output);
  msi_calls_give(client, call);
}

/* The caller gets no request, so its tensors must not be touched any more. */
static void give_up(msi_client *client, msi_call *call) {
  if (call->state == CALL_QUEUED)
    withdraw(client, call);
  else if (call->state == CALL_DONE)
    msi_calls_give(client, call);
  else
    call->message.abandoned = 1;
}

/* The replies of the old assignment are taken first: a slot may be free then. */
static int aim(mpiserve_service *service, msi_call *call, int64_t rows, int chosen) {
  int code = MPISERVE_OK;
  if (msi_assignment_changes(service, chosen)) {
    code = msi_call_progress(service->client, service->choices[service->assignment]);
    if (!code && msi_assignment_changes(service, chosen))
      code = msi_assignment_move(service, chosen);
  }
  if (!code) msi_assignment_aim(service, call, rows, chosen);
  return code;
}

static int choose(mpiserve_service *service, msi_call *call, int64_t rows, void *const *inputs,
                  void *const *outputs) {
  call->message.endpoint = service->endpoint;
  call->kind = call->piece ? call->piece : MSI_INFER;
  call->load = NULL;
  if (service->balance.n < 2) return MPISERVE_OK;
  const msi_load *loads = service->balance.loads;
  int home = service->balance.home;
  int is_bound =
      msi_lease_in_place(service->endpoint, rows, inputs, outputs) && !loads[home].suspended;
  int chosen = is_bound ? home : msi_balance_choose(&service->balance, rows);
  if (loads[chosen].suspended) chosen = msi_spare_choose(service, rows, chosen);
  return aim(service, call, rows, chosen);
}

static int check_stopped(const mpiserve_service *service, void *const *in, void *const *out) {
  int code = msi_call_progress_all(service->client);
  return code ? code : msi_stopped_check(service, in, out);
}

int msi_call_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                    void *const *outputs, const mpiserve_options *options, int how,
                    mpiserve_request *request) {
  msi_client *client = service->client;
  int code = client->unsettled ? check_stopped(service, inputs, outputs) : MPISERVE_OK;
  if (code) return code;
  msi_call *call = msi_calls_take(client);
  if (!call) return msi_error(MPISERVE_ENOMEM, "no memory for a request");
  call->submitted_ns = how & CALL_TIMED || MSI_PROFILED ? msi_now() : 0;
  call->piece = how & CALL_IS_PIECE ? MSI_PIECE : how & CALL_IS_LAST_PIECE ? MSI_LAST_PIECE : 0;
  call->service = service;
  code = choose(service, call, rows, inputs, outputs);
  if (!code && msi_layout_is_free(&service->endpoint->layout))
    code = msi_free_dims_take(call, options);
  if (!code && service->endpoint->layout.outputs.n_hidden) code = msi_uncertainty_take(call, rows);
  if (code) {
    msi_calls_give(client, call);
    return code;
  }
  msi_lease_fill(call->message.endpoint, &call->payload, rows, inputs, outputs);
  set_options(call, options);
  if (MSI_PROFILED) msi_timing_begin(client, call, how & CALL_BLOCKS);
  if (call->message.endpoint->lost || call->message.endpoint->stopped) {
    send_elsewhere(client, call); /* every replica is */
    *request = msi_calls_handle(call);
    return MPISERVE_OK;
  }
  call->state = CALL_QUEUED;
  msi_send_queue_push(client, &call->message);
  code = advance(client, call->message.endpoint);
  if (code)
    give_up(client, call);
  else
    *request = msi_calls_handle(call);
  return code;
}

/* The caller learns the end of its request, once. */
static int report(msi_client *client, msi_call *call, mpiserve_request *request,
                  mpiserve_stats *stats) {
  int code = msi_fallback_end(client, call);
  if (MSI_PROFILED) msi_timing_report(client, call, code);
  if (stats) *stats = call->stats;
  *request = (mpiserve_request){0};
  msi_calls_give(client, call);
  return code;
}

static int overdue(const msi_call *call) {
  if (!is_late(call)) return MPISERVE_OK;
  return msi_error(MPISERVE_EDEADLINE, "no reply from rank %d by the deadline of the request",
                   call->message.endpoint->path.head);
}

/* While a client tests one request for long, its other endpoints must make progress too. */
static int not_ended(msi_client *client) {
  int code = ++client->tests % TESTS_PER_LOOK ? MPISERVE_OK : msi_call_progress_all(client);
  return code ? code : msi_error(MPISERVE_ETIMEOUT, "the request has not ended yet");
}

static int wait_until_done(msi_client *client, msi_call *call, double timeout, msi_wait *wait,
                           const msi_wait_address *address) {
  int64_t deadline = 0;
  const msi_endpoint *endpoint = call->message.endpoint;
  for (;;) {
    int code = msi_call_progress(client, call->message.endpoint);
    if (code || call->state == CALL_DONE) return code;
    if (MSI_PROFILED) msi_profile_settle(client->profile);
    if (timeout != 0 && !msi_wait_pause(wait, &client->backoff, address)) continue;
    if (call->message.endpoint != endpoint) { /* it was sent to another replica: it naps */
      msi_wait_end(wait, address);
      address = NULL;
    }
    code = overdue(call);
    if (code) return code;
    if (timeout == 0) return not_ended(client);
    if (!deadline) deadline = msi_deadline(timeout);
    int64_t now = msi_now();
    msi_metrics_wait(client->metrics, wait, now, call->message.endpoint->path.head);
    if (now > deadline)
      return msi_error(MPISERVE_ETIMEOUT, "no reply from rank %d within %g s",
                       call->message.endpoint->path.head, timeout);
    code = msi_call_progress_all(client);
    if (code) return code;
  }
}

int msi_call_wait(msi_client *client, mpiserve_request *request, double timeout,
                  mpiserve_stats *stats) {
  msi_call *call = msi_calls_find(client, request);
  if (!call) return msi_error(MPISERVE_ESTATE, "no such request: it has ended, or never was");
  msi_wait wait = {0};
  msi_wait_address address;
  if (MSI_PROFILED) msi_timing_enter(call, timeout);
  int has_address = call->state == CALL_IN_FLIGHT &&
                    msi_endpoint_wait_address(call->message.endpoint, call->sequence, &address);
  int code = wait_until_done(client, call, timeout, &wait, has_address ? &address : NULL);
  msi_wait_end(&wait, &address);
  if (!code) return report(client, call, request, stats);
  if (MSI_PROFILED) msi_timing_leave(call, timeout);
  return code == MPISERVE_EDEADLINE ? msi_call_give_up(client, request, code, stats) : code;
}

int msi_call_give_up(msi_client *client, mpiserve_request *request, int code,
                     mpiserve_stats *stats) {
  const msi_call *call = msi_calls_find(client, request);
  if (!call) return code;
  msi_call given = *call; /* which may serve another request soon */
  msi_call_cancel(client, request);
  code = msi_fallback_give_up(client, &given, code);
  if (MSI_PROFILED) msi_timing_report(client, &given, code);
  if (stats && code != MPISERVE_ETIMEOUT) *stats = given.stats; /* only what is known here */
  return code;
}

int msi_call_cancel(msi_client *client, mpiserve_request *request) {
  msi_call *call = msi_calls_find(client, request);
  if (!call) return msi_error(MPISERVE_ESTATE, "no such request: it has ended, or never was");
  *request = (mpiserve_request){0};
  if (call->state == CALL_QUEUED) {
    msi_endpoint *endpoint = call->message.endpoint;
    withdraw(client, call);
    return advance(client, endpoint);
  }
  if (call->state == CALL_DONE) {
    msi_calls_give(client, call);
    return MPISERVE_OK;
  }
  call->message.abandoned = 1;
  return call->state == CALL_IN_FLIGHT ? msi_endpoint_cancel(call->message.endpoint, call->sequence)
                                       : MPISERVE_OK;
}
