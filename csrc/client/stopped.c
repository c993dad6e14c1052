#include "client/stopped.h"

#include <stdlib.h>

#include "base/error.h"
#include "client/lease.h"
#include "mpi/failure.h"

static const int64_t LOOK_NS = 100000000; /* between two looks, each some reads of /proc */
static const double LIMIT = 5;

/* 0 or less: no head is ever stopped. As Python reads numbers of the environment. */
int64_t msi_stopped_limit(void) {
  const char *text = getenv("MPISERVE_STOPPED_TIMEOUT");
  char *end = NULL;
  double seconds = text ? strtod(text, &end) : 0;
  if (!text || end == text || *end || seconds != seconds) seconds = LIMIT;
  return seconds > 0 && seconds < 1e9 ? (int64_t)(seconds * 1e9) : INT64_MAX;
}

/* ---- signs of life ------------------------------------------------------------------- */

/* The oldest request without a reply; 0: there is none. */
static uint64_t oldest(const msi_endpoint *endpoint) {
  uint64_t least = 0;
  for (int i = 0; i < MSI_SLOTS; i++) {
    uint64_t sequence = endpoint->path.slots[i].request.sequence;
    if (endpoint->taken[i] && (!least || sequence < least)) least = sequence;
  }
  return least;
}

/* Has the head answered nothing since the last look? */
static int waits(msi_endpoint *endpoint) {
  uint64_t before = endpoint->waits_for;
  endpoint->waits_for = oldest(endpoint);
  return before && endpoint->waits_for == before;
}

static int is_another(const mpiserve_service *service, int i, const msi_endpoint *endpoint) {
  const msi_endpoint *other = service->choices[i];
  int can_serve = !service->balance.loads[i].suspended || i >= service->planned;
  return other != endpoint && !other->lost && !other->stopped && can_serve;
}

/* Has each service of this head another replica? */
static int has_others(const msi_client *client, const msi_endpoint *endpoint) {
  for (int s = 0; s < client->n_services; s++) {
    const mpiserve_service *service = &client->services[s];
    int is_here = 0, others = 0;
    for (int i = 0; i < service->replicas; i++) {
      is_here |= service->choices[i] == endpoint;
      others |= is_another(service, i, endpoint);
    }
    if (is_here && !others) return 0;
  }
  return 1;
}

/* A head of another node takes messages also while its model runs, by its broker thread; but not
 * without one, nor while it loads a model of several ranks. So it counts as stopped only where
 * nothing is lost if it is not; elsewhere requests wait until their time is over. */
static int64_t untaken_since(const msi_client *client, const msi_endpoint *endpoint) {
  int64_t since_ns = msi_window_untaken_since(client->window, endpoint->path.head);
  return since_ns && has_others(client, endpoint) ? since_ns : 0;
}

/* In the kernel a model may also only wait for a slow disk, but hardly at each look. */
static int is_stopped(const msi_client *client, const msi_endpoint *endpoint,
                      msi_peer_state state) {
  return state == MSI_PEER_STOPPED || (state == MSI_PEER_STUCK && has_others(client, endpoint));
}

/* Since when there is no sign of life; 0: there is one, or nobody can know. */
static int64_t silent_since(const msi_client *client, const msi_endpoint *endpoint, int64_t now) {
  msi_peer_state state = msi_failure_state_of(client->world, endpoint->path.head);
  if (is_stopped(client, endpoint, state)) return endpoint->silent_ns ? endpoint->silent_ns : now;
  if (state == MSI_PEER_DEAD) return 0;
  int64_t looked_ns =
      state == MSI_PEER_UNKNOWN ? untaken_since(client, endpoint) : msi_endpoint_waits(endpoint);
  return looked_ns && now - looked_ns >= client->stopped_limit_ns ? looked_ns : 0;
}

/* Other services of the same rank need not find out by themselves. */
static void stop(msi_client *client, msi_endpoint *endpoint) {
  msi_endpoint_forget(endpoint);
  endpoint->stopped = 1;
  client->unsettled++;
  for (int i = 0; i < client->n_endpoints; i++) {
    msi_endpoint *other = &client->endpoints[i];
    if (other->path.head == endpoint->path.head && !other->silent_ns)
      other->silent_ns = endpoint->silent_ns;
  }
  for (int i = 0; i < client->n_services; i++) msi_service_lose(&client->services[i], endpoint);
}

/* Its home stays where it has moved to. */
static void go_on(msi_client *client, msi_endpoint *endpoint) {
  endpoint->stopped = 0;
  client->unsettled--;
  for (int i = 0; i < client->n_services; i++) {
    mpiserve_service *service = &client->services[i];
    for (int r = 0; r < service->replicas; r++)
      if (service->choices[r] == endpoint) msi_balance_regain(&service->balance, r);
  }
}

/* Has it stopped just now? */
static int look(msi_client *client, msi_endpoint *endpoint, int64_t now) {
  int has_waited = waits(endpoint);
  if (endpoint->lost || (!has_waited && !endpoint->silent_ns)) return 0;
  endpoint->silent_ns = silent_since(client, endpoint, now);
  if (!endpoint->silent_ns && endpoint->stopped) go_on(client, endpoint);
  if (!endpoint->silent_ns || endpoint->stopped) return 0;
  if (now - endpoint->silent_ns < client->stopped_limit_ns) return 0;
  stop(client, endpoint);
  return 1;
}

msi_endpoint *msi_stopped_next(msi_client *client) {
  int64_t now = msi_now();
  if (now < client->next_look_ns || !client->world->failure) return NULL;
  for (int h = 0; h < client->n_endpoints; h++)
    if (look(client, &client->endpoints[h], now)) return &client->endpoints[h];
  client->next_look_ns = now + LOOK_NS;
  return NULL;
}

/* ---- withdrawing --------------------------------------------------------------------- */

/* An overwriting service has its results where the inputs were. */
static int overwrites(const msi_endpoint *endpoint) {
  return endpoint->layout.outputs_at[0] == endpoint->layout.inputs_at[0];
}

/* The rows of one side are the slot's until the reply. Those of a buffer that is no lease's of
 * this request, which has only asked for rows, are let go with the request. */
static void hand_over(msi_location *location, int may_be_buffer, int *lease) {
  if (location->lease < 0 || (location->lease >= MSI_SLOTS && !may_be_buffer)) return;
  *lease = location->lease;
  location->lease = -1;
}

/* Over rma nothing is put into the memory of a rank that is stopped: MPI may wait for it. */
static void withdraw(msi_client *client, msi_endpoint *endpoint, int slot, msi_call *call) {
  msi_withdrawn *withdrawn = &endpoint->withdrawn[slot];
  int sent = call->state == CALL_IN_FLIGHT;
  const msi_payload *p = &call->payload;
  *withdrawn = (msi_withdrawn){.waits = 1, .input = -1, .output = -1, .exposed = -1};
  if (sent && p->input.in_place && overwrites(endpoint)) withdrawn->exposed = p->input.lease;
  if (sent && p->output.in_place) withdrawn->exposed = p->output.lease;
  call->message.exposed = withdrawn->exposed >= 0;
  hand_over(&call->payload.input, sent, &withdrawn->input);
  hand_over(&call->payload.output, sent, &withdrawn->output);
  client->unsettled++;
  if (sent && endpoint->path.transport->same_node) msi_endpoint_cancel(endpoint, call->sequence);
}

static int is_change(const msi_message *message) { return message->type == MESSAGE_CHANGE; }

/* Nobody waits for a record that is in the slot: the head takes it when it goes on. */
static int stays(const msi_message *message) {
  return is_change(message) ||
         (message->type == MESSAGE_RECORD && !msi_message_is_leasing(message));
}

static msi_message *take_from_slot(msi_client *client, msi_endpoint *endpoint, int slot) {
  msi_message *message = endpoint->owners[slot];
  endpoint->owners[slot] = NULL;
  if (message->type == MESSAGE_BUFFER) return message;
  msi_call *call = (msi_call *)message;
  withdraw(client, endpoint, slot, call);
  if (call->state == CALL_LEASING) msi_send_queue_remove(client, message);
  return message;
}

msi_message *msi_stopped_take(msi_client *client, msi_endpoint *endpoint) {
  for (int i = 0; i < MSI_SLOTS; i++) {
    int at = (int)((endpoint->sent + (uint64_t)i) % MSI_SLOTS);
    const msi_message *owner = endpoint->taken[at] ? endpoint->owners[at] : NULL;
    if (owner && !stays(owner)) return take_from_slot(client, endpoint, at);
  }
  msi_message *message = msi_send_queue_of(client, endpoint)->first;
  while (message && (is_change(message) || msi_message_is_leasing(message)))
    message = message->next;
  if (message) msi_send_queue_remove(client, message);
  return message;
}

static void let_go(msi_endpoint *endpoint, int lease) {
  msi_location location = {.lease = lease};
  msi_lease_let_go(endpoint, &location);
}

/* Rows that were granted meanwhile are where the reply says. */
void msi_stopped_settle(msi_client *client, msi_endpoint *endpoint, int slot) {
  msi_withdrawn *withdrawn = &endpoint->withdrawn[slot];
  const msi_slot *from = &endpoint->path.slots[slot];
  if (!withdrawn->waits) return;
  withdrawn->waits = 0;
  client->unsettled--;
  if (from->request.kind == MSI_LEASE)
    msi_lease_granted(endpoint, from->request.lease, &from->reply);
  let_go(endpoint, withdrawn->input);
  let_go(endpoint, withdrawn->output);
}

/* ---- buffers ---------------------------------------------------------------------------- */

static int lies_in(const msi_endpoint *endpoint, int lease, int n, void *const *tensors) {
  for (int i = 0; i < n; i++)
    if (msi_endpoint_is_in_buffer(endpoint, lease, tensors[i])) return 1;
  return 0;
}

static int is_exposed(const msi_endpoint *endpoint, const msi_side *in, void *const *inputs,
                      const msi_side *out, void *const *outputs) {
  for (int i = 0; i < MSI_SLOTS; i++) {
    const msi_withdrawn *withdrawn = &endpoint->withdrawn[i];
    if (!withdrawn->waits || withdrawn->exposed < MSI_SLOTS) continue;
    if (lies_in(endpoint, withdrawn->exposed, in->n, inputs) ||
        lies_in(endpoint, withdrawn->exposed, out->n, outputs))
      return 1;
  }
  return 0;
}

int msi_stopped_check(const mpiserve_service *service, void *const *inputs, void *const *outputs) {
  const msi_client *client = service->client;
  const msi_layout *layout = &service->endpoint->layout;
  for (int h = 0; h < client->n_endpoints; h++) {
    const msi_endpoint *endpoint = &client->endpoints[h];
    if (!is_exposed(endpoint, &layout->inputs, inputs, &layout->outputs, outputs)) continue;
    char text[MPISERVE_TEXT_SIZE] = "";
    msi_failure_name(client->world, endpoint->path.head, text, sizeof text);
    return msi_error(MPISERVE_EPEER,
                     "service '%s': a tensor is in a buffer to which %s, which had stopped, may "
                     "still write: take another one",
                     service->name, text);
  }
  return MPISERVE_OK;
}
