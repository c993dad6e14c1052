#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

/* A request, from submit until its end has been told to the caller. */
struct msi_call {
  uint32_t index, generation; /* its id is generation << 32 | index + 1 */
  enum { CALL_IDLE, CALL_LEASING, CALL_READY, CALL_FLYING, CALL_DONE } state;
  int code;
  int abandoned; /* cancelled: nobody wants the end */
  int lease;
  msi_link *link;
  uint64_t sequence;
  int64_t rows, submitted_ns;
  void *inputs[MPISERVE_MAX_TENSORS], *outputs[MPISERVE_MAX_TENSORS];
  mpiserve_stats stats;
  char text[MSI_EAGER_BYTES + 1];
  msi_call *next;
};

static msi_call control; /* owner of slots whose reply interests nobody */

/* ---- services -------------------------------------------------------------- */

static mpiserve_service *service_named(const msi_client *client, const char *name) {
  for (int i = 0; i < client->n_services; i++)
    if (!strcmp(client->services[i].name, name)) return &client->services[i];
  return NULL;
}

/* Every service once, in the order of its first head. */
static void list_services(msi_client *client) {
  for (int h = 0; h < client->n_links; h++) {
    const char *name = client->world->heads[h].description.name;
    if (!service_named(client, name))
      client->services[client->n_services++] = (mpiserve_service){.client = client, .name = name};
  }
}

static int can_serve(const msi_client *client, const mpiserve_service *service, int head,
                     int near_only) {
  const msi_world *world = client->world;
  const msi_head *h = &world->heads[head];
  if (strcmp(h->description.name, service->name) || h->description.error) return 0;
  return !near_only || world->nodes[h->rank] == world->nodes[world->rank];
}

/* The k-th replica of those that can serve, where k goes round the clients. */
static void choose_replica(msi_client *client, mpiserve_service *service) {
  int near = 0, all = 0;
  for (int h = 0; h < client->n_links; h++) {
    near += can_serve(client, service, h, 1);
    all += can_serve(client, service, h, 0);
  }
  service->replicas = all;
  if (!all) return;
  int k = msi_world_index(client->world, client->world->rank) % (near ? near : all);
  for (int h = 0; h < client->n_links; h++) {
    if (!can_serve(client, service, h, near > 0) || k-- > 0) continue;
    service->head = &client->world->heads[h];
    service->link = &client->links[h];
    return;
  }
}

int msi_client_open(msi_client *client, const msi_world *world, msi_window *window) {
  *client = (msi_client){.world = world, .window = window, .n_links = world->n_heads};
  client->links = calloc((size_t)world->n_heads, sizeof *client->links);
  client->services = calloc((size_t)world->n_heads, sizeof *client->services);
  if (!client->links || !client->services) return msi_error(MPISERVE_ENOMEM, "no memory for links");
  for (int h = 0; h < world->n_heads; h++) {
    int code = msi_link_open(&client->links[h], window, &world->heads[h].description,
                             world->heads[h].rank);
    if (code) return code;
  }
  list_services(client);
  for (int i = 0; i < client->n_services; i++) choose_replica(client, &client->services[i]);
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
  for (int h = 0; h < client->n_links; h++) {
    const msi_head *head = &client->world->heads[h];
    if (!strcmp(head->description.name, name))
      return msi_error(MPISERVE_EMODEL, "service '%s' on rank %d could not be loaded: %s", name,
                       head->rank, head->description.error_text);
  }
  return MPISERVE_EMODEL;
}

static int progress_link(msi_client *client, msi_link *link);
static int progress(msi_client *client);

/* Waits until the next slot of the link is free. Heads answer in the end. */
static int wait_free(msi_client *client, msi_link *link) {
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && !msi_link_free(link)) {
    code = progress_link(client, link);
    if (!code && msi_wait_pause(&wait, &client->world->patience)) code = progress(client);
  }
  return code;
}

static int send_control(msi_client *client, msi_link *link, msi_kind kind, const char *text) {
  int code = wait_free(client, link);
  return code ? code : msi_link_send(link, kind, 0, -1, text, &control);
}

int msi_client_find(msi_client *client, const char *name, mpiserve_service **service) {
  mpiserve_service *found = service_named(client, name);
  if (!found) return not_found(client, name);
  if (!found->head) return not_loaded(client, name);
  *service = found;
  return MPISERVE_OK;
}

int msi_client_attach(mpiserve_service *service) {
  if (service->attached) return MPISERVE_OK;
  service->attached = 1;
  return send_control(service->client, service->link, MSI_ATTACH, NULL);
}

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
  return call;
}

static void call_give(msi_client *client, msi_call *call) {
  call->state = CALL_IDLE;
  call->generation++;
  call->next = client->idle;
  client->idle = call;
}

static msi_call *call_find(msi_client *client, const mpiserve_request *request) {
  uint32_t index = (uint32_t)request->id - 1, generation = (uint32_t)(request->id >> 32);
  if (!request->id || index >= client->n_calls) return NULL;
  msi_call *call = client->calls[index];
  if (call->generation != generation || call->state == CALL_IDLE || call->abandoned) return NULL;
  return call;
}

static void lease_end(msi_call *call) {
  if (call->link->unsent == call) call->link->unsent = NULL;
  if (call->lease < 0) return;
  msi_lease *lease = &call->link->leases[call->lease];
  call->lease = -1;
  lease->stale = lease->once;
  lease->busy = lease->stale;
}

static void call_end(msi_client *client, msi_call *call, int code) {
  lease_end(call);
  call->code = code;
  call->state = CALL_DONE;
  call->stats.total_ns = msi_now() - call->submitted_ns;
  client->counters.requests++;
  client->counters.rows += call->rows;
  client->counters.errors += code != MPISERVE_OK;
  if (call->abandoned) call_give(client, call);
}

static int fly(msi_call *call) {
  int code =
      msi_link_infer(call->link, call->rows, call->lease, call->inputs, call, &call->sequence);
  call->link->unsent = NULL;
  if (!code) call->state = CALL_FLYING;
  return code;
}

/* Sizes that repeat get exactly their rows, so that neighbours touch; sizes that
 * vary get some to spare, so that the next larger one need not ask again. */
static int ask_lease(msi_call *call, int at) {
  msi_link *link = call->link;
  msi_lease *lease = &link->leases[at];
  int64_t rows = call->rows + (lease->renewed ? call->rows / 4 : 0);
  int64_t limit = link->layout.max_rows;
  lease->busy = 1;
  link->unsent = call;
  call->lease = at;
  call->state = CALL_LEASING;
  return msi_link_send(link, MSI_LEASE, rows < limit ? rows : limit, at, NULL, call);
}

/* May the link ask for rows? Not while it has some that others may be waiting for:
 * the question may keep the slot that giving them back needs. */
static int may_ask(const msi_link *link) {
  for (int i = 0; i < MSI_SLOTS; i++)
    if (link->leases[i].once) return 0;
  return 1;
}

/* Takes the next step that needs a slot. A call does not pass one that was
 * submitted before it and has not been sent. *begun is 0 if there is no slot, or no
 * lease, to be had now. */
static int call_begin(msi_call *call, int *begun) {
  msi_link *link = call->link;
  *begun = 0;
  if (!msi_link_free(link) || (link->unsent && link->unsent != call)) return MPISERVE_OK;
  if (call->state != CALL_READY && !msi_layout_eager(&link->layout, call->rows)) {
    int at = msi_link_lease_find(link, call->rows);
    if (at < 0) {
      at = msi_link_lease_spare(link);
      if (at < 0 || !may_ask(link)) return MPISERVE_OK;
      *begun = 1;
      return ask_lease(call, at);
    }
    link->leases[at].busy = 1;
    call->lease = at;
  }
  *begun = 1;
  return fly(call);
}

/* The head has granted rows, or refused. */
static void on_lease(msi_client *client, msi_call *call, const msi_reply_header *reply) {
  msi_lease *lease = &call->link->leases[call->lease];
  *lease = (msi_lease){.begin = reply->lease_begin,
                       .rows = reply->lease_rows,
                       .busy = 1,
                       .once = (int)reply->lease_once,
                       .renewed = 1};
  if (reply->code || call->abandoned)
    call_end(client, call, reply->code);
  else
    call->state = CALL_READY;
}

static int on_result(msi_client *client, msi_call *call, int slot) {
  msi_link *link = call->link;
  const msi_reply_header *reply = &link->slots[slot].reply;
  call->stats = (mpiserve_stats){.rows = call->rows,
                                 .batch_rows = reply->rows,
                                 .batch_requests = reply->requests,
                                 .queue_ns = reply->queue_ns,
                                 .compute_ns = reply->compute_ns};
  int code = reply->code;
  if (!code && !call->abandoned)
    code = msi_link_outputs(link, slot, call->rows, call->lease, call->outputs);
  call_end(client, call, code);
  return MPISERVE_OK;
}

/* Copies the text of an error before the slot is used again. */
static void keep_text(msi_call *call, const msi_link *link, int slot) {
  const msi_reply_header *reply = &link->slots[slot].reply;
  size_t bytes = reply->text_bytes <= MSI_EAGER_BYTES ? reply->text_bytes : MSI_EAGER_BYTES;
  memcpy(call->text, link->slots[slot].output, bytes);
  call->text[bytes] = 0;
}

static int on_reply(msi_client *client, msi_link *link, int slot) {
  msi_call *call = link->owners[slot];
  if (call != &control) {
    const msi_reply_header *reply = &link->slots[slot].reply;
    if (reply->code) keep_text(call, link, slot);
    if (call->state == CALL_LEASING)
      on_lease(client, call, reply);
    else
      on_result(client, call, slot);
  }
  msi_link_release(link, slot);
  if (call == &control || call->state != CALL_READY) return MPISERVE_OK;
  int begun;
  return call_begin(call, &begun);
}

static int give_back(msi_link *link) {
  int code = MPISERVE_OK;
  for (int i = 0; i < MSI_SLOTS && !code; i++) {
    if (!link->leases[i].stale || !msi_link_free(link)) continue;
    link->leases[i] = (msi_lease){0};
    code = msi_link_send(link, MSI_LEASE, 0, i, NULL, &control);
  }
  return code;
}

/* Calls that got their lease when no slot was free. */
static int begin_ready(msi_client *client, msi_link *link) {
  for (uint32_t i = 0; i < client->n_calls; i++) {
    msi_call *call = client->calls[i];
    int begun, code = MPISERVE_OK;
    if (call->state == CALL_READY && call->link == link) code = call_begin(call, &begun);
    if (code) return code;
  }
  return give_back(link);
}

/* Messages of the rma transport may be for any link. */
static int hear(msi_client *client) {
  for (;;) {
    int head;
    int code = msi_window_hear(client->window, &head);
    if (code || head < 0) return code;
    for (int i = 0; i < client->n_links; i++)
      if (client->links[i].head == head)
        msi_link_deliver(&client->links[i], client->window->mailbox);
    code = msi_window_listen(client->window);
    if (code) return code;
  }
}

static int progress_link(msi_client *client, msi_link *link) {
  int code = link->transport == MPISERVE_RMA ? hear(client) : MPISERVE_OK;
  int slot, any = 0;
  while (!code && (slot = msi_link_reply(link)) >= 0) {
    code = on_reply(client, link, slot);
    any = 1;
  }
  return any && !code ? begin_ready(client, link) : code;
}

static int progress(msi_client *client) {
  int code = msi_window_nudge(client->window);
  for (int i = 0; i < client->n_links && !code; i++)
    if (client->links[i].in_flight) code = progress_link(client, &client->links[i]);
  return code;
}

/* ---- what callers do ------------------------------------------------------------ */

int msi_client_submit(mpiserve_service *service, int64_t rows, void *const *inputs,
                      void *const *outputs, mpiserve_request *request) {
  msi_client *client = service->client;
  msi_link *link = service->link;
  msi_call *call = call_take(client);
  if (!call) return msi_error(MPISERVE_ENOMEM, "no memory for a request");
  call->link = link;
  call->lease = -1;
  call->abandoned = 0;
  call->rows = rows;
  call->submitted_ns = msi_now();
  memcpy(call->inputs, inputs, (size_t)link->layout.inputs.n * sizeof *inputs);
  memcpy(call->outputs, outputs, (size_t)link->layout.outputs.n * sizeof *outputs);
  *request = (mpiserve_request){(uint64_t)call->generation << 32 | (call->index + 1)};
  msi_wait wait = {0};
  for (int begun = 0, code; !begun;) {
    code = wait_free(client, link);
    if (!code) code = call_begin(call, &begun);
    if (!code && !begun) code = progress_link(client, link);
    if (!code && !begun) code = give_back(link);
    if (!code && !begun && msi_wait_pause(&wait, &client->world->patience)) code = progress(client);
    if (!code) continue;
    *request = (mpiserve_request){0};
    call_give(client, call);
    return code;
  }
  return MPISERVE_OK;
}

/* What is told to the caller, once. */
static int report(msi_client *client, msi_call *call, mpiserve_request *request,
                  mpiserve_stats *stats) {
  int code = call->code;
  if (stats) *stats = call->stats;
  if (code) msi_error(code, "%s", call->text[0] ? call->text : mpiserve_strerror(code));
  call->text[0] = 0;
  *request = (mpiserve_request){0};
  call_give(client, call);
  return code;
}

int msi_client_wait(msi_client *client, mpiserve_request *request, double timeout,
                    mpiserve_stats *stats) {
  msi_call *call = call_find(client, request);
  if (!call) return msi_error(MPISERVE_ESTATE, "no such request: it has ended, or never was");
  int64_t deadline = timeout > 0 || timeout < 0 ? msi_deadline(timeout) : 0;
  msi_wait wait = {0};
  for (;;) {
    int code = progress_link(client, call->link);
    if (code) return code;
    if (call->state == CALL_DONE) return report(client, call, request, stats);
    if (!deadline) return msi_error(MPISERVE_ETIMEOUT, "the request has not ended yet");
    if (!msi_wait_pause(&wait, &client->world->patience)) continue;
    if (msi_now() > deadline)
      return msi_error(MPISERVE_ETIMEOUT, "no reply from rank %d within %g s", call->link->head,
                       timeout);
    code = progress(client);
    if (code) return code;
  }
}

int msi_client_cancel(msi_client *client, mpiserve_request *request) {
  msi_call *call = call_find(client, request);
  if (!call) return msi_error(MPISERVE_ESTATE, "no such request: it has ended, or never was");
  *request = (mpiserve_request){0};
  if (call->state == CALL_DONE || call->state == CALL_READY) {
    if (call->state == CALL_READY) lease_end(call);
    call_give(client, call);
    return MPISERVE_OK;
  }
  call->abandoned = 1;
  return call->state == CALL_FLYING ? msi_link_cancel(call->link, call->sequence) : MPISERVE_OK;
}

/* Waits until nothing of ours is at the head. */
static int drain(msi_client *client, msi_link *link) {
  msi_wait wait = {0};
  int code = MPISERVE_OK;
  while (!code && link->in_flight) {
    code = progress_link(client, link);
    if (!code && link->in_flight && msi_wait_pause(&wait, &client->world->patience))
      code = progress(client);
  }
  return code;
}

static int to_all(msi_client *client, msi_kind kind, const char *text) {
  int code = MPISERVE_OK;
  for (int i = 0; i < client->n_links && !code; i++)
    code = send_control(client, &client->links[i], kind, text);
  for (int i = 0; i < client->n_links && !code; i++) code = drain(client, &client->links[i]);
  return code;
}

int msi_client_fail(msi_client *client, const char *text) {
  for (uint32_t i = 0; i < client->n_calls; i++) {
    msi_call *call = client->calls[i];
    mpiserve_request request = {(uint64_t)call->generation << 32 | (call->index + 1)};
    if (call_find(client, &request)) msi_client_cancel(client, &request);
  }
  return to_all(client, MSI_FAIL, text);
}

int msi_client_close(msi_client *client) {
  int code = MPISERVE_OK;
  for (int i = 0; i < client->n_links && !code; i++) code = drain(client, &client->links[i]);
  if (!code) code = to_all(client, MSI_LEAVE, NULL);
  for (int i = 0; i < client->n_links; i++) msi_link_close(&client->links[i]);
  for (uint32_t i = 0; i < client->n_calls; i++) free(client->calls[i]);
  free(client->calls);
  free(client->links);
  free(client->services);
  return code;
}
