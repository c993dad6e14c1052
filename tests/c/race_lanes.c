/* A head of two services and its clients as threads of one process, for the thread sanitizer: who
 * may see what before what, in slots, leases, early answers, changes of a model, suspending and
 * sleep. */
#include <pthread.h>

#include "check.h"
#include "head/reply.h"
#include "race.h"

enum { CLIENTS = 3, SERVICES = 2, ROUNDS = 150, MAX_ROWS = 200 };

static msi_made_up made;
static _Atomic int wrong;

static void wait_reply(msi_endpoint *endpoint) {
  msi_backoff backoff = msi_backoff_for(2, 1); /* asleep soon */
  msi_wait wait = {0};
  msi_wait_address address;
  msi_endpoint_wait_address(endpoint, endpoint->sent, &address);
  while (msi_endpoint_reply(endpoint) < 0) msi_wait_pause(&wait, &backoff, &address);
  msi_wait_end(&wait, &address);
}

/* 1: the service is suspended there. */
static int take_reply(msi_endpoint *endpoint, const msi_payload *payload) {
  wait_reply(endpoint);
  int slot = msi_endpoint_reply(endpoint), code = endpoint->path.slots[slot].reply.code;
  wrong |= code != 0 && (code != MSI_SUSPENDED || !payload);
  if (payload && !code) msi_endpoint_outputs(endpoint, slot, payload, &endpoint->layout.outputs);
  msi_endpoint_release(endpoint, slot);
  return code == MSI_SUSPENDED;
}

static void lease(msi_endpoint *endpoint, int64_t rows) {
  msi_endpoint_send(endpoint, MSI_LEASE, rows, 0, NULL, NULL);
  wait_reply(endpoint);
  const msi_reply_header *reply = &endpoint->path.slots[msi_endpoint_reply(endpoint)].reply;
  endpoint->leases[0] = (msi_lease){.begin = reply->lease_begin, .rows = reply->rows};
  take_reply(endpoint, NULL);
}

static void ask(msi_endpoint *endpoint, int64_t rows, int at, double seed) {
  double in[MAX_ROWS], out[MAX_ROWS];
  uint64_t sequence;
  for (int64_t i = 0; i < rows; i++) in[i] = seed + (double)i;
  msi_payload payload = {
      .rows = rows, .input = {at}, .output = {at}, .inputs = {in}, .outputs = {out}};
  payload.priority = (int8_t)(rows % 3);
  payload.deadline_ns = rows % 2 ? msi_deadline(60) : 0;
  do {
    msi_endpoint_infer(endpoint, MSI_INFER, &payload, NULL, &sequence);
  } while (take_reply(endpoint, &payload));
  for (int64_t i = 0; i < rows; i++) wrong |= out[i] != (2 + endpoint->path.service_index) * in[i];
}

static void *client(void *argument) {
  uint32_t lane = *(uint32_t *)argument;
  msi_endpoint endpoints[SERVICES];
  for (int s = 0; s < SERVICES; s++) {
    endpoints[s] = made_up_endpoint(&made, s, lane);
    msi_endpoint_send(&endpoints[s], MSI_ATTACH, 0, -1, NULL, NULL);
    take_reply(&endpoints[s], NULL);
  }
  for (int i = 0; i < ROUNDS * SERVICES; i++) {
    msi_endpoint *endpoint = &endpoints[i % SERVICES];
    if (i % 50 < SERVICES) lease(endpoint, 60 + i / 5);
    ask(endpoint, 1 + i % 20, -1, lane * 1000 + i);
    ask(endpoint, 50 + i / 5, 0, lane * 1000 + i);
    if (i % 100 >= SERVICES) continue;
    msi_endpoint_send(endpoint, MSI_CHANGE, 0, MPISERVE_SWAP, "version", NULL);
    take_reply(endpoint, NULL);
  }
  for (int s = 0; s < SERVICES; s++) {
    msi_endpoint_send(&endpoints[s], MSI_LEAVE, 0, -1, NULL, NULL);
    take_reply(&endpoints[s], NULL);
  }
  return NULL;
}

/* For a few looks; it is the only replica, so clients ask it again. */
static void suspend(msi_serving *serving, int service) {
  wrong |= msi_serving_suspend(serving, service, 1) != 0;
  for (int i = 0; i < 20; i++) wrong |= msi_serving_poll(serving) != 0;
  wrong |= msi_serving_suspend(serving, service, 0) != 0;
}

static void *head(void *argument) {
  msi_serving *serving = argument;
  mpiserve_batch batch;
  int code;
  while ((code = msi_serving_next(serving, 60, &batch)) != MPISERVE_ECLOSED) {
    if (code == MPISERVE_ECHANGE) {
      mpiserve_change_request change;
      wrong |= msi_serving_change_get(serving, &change) || strcmp(change.version, "version");
      wrong |= msi_serving_change_reply(serving, change.service, MPISERVE_OK, NULL) != 0;
      continue;
    }
    msi_broker *broker = &serving->brokers[batch.service];
    const double *in = batch.inputs[0];
    double *out = batch.outputs[0];
    for (int64_t i = 0; i < batch.rows; i++) {
      out[i] = (2 + batch.service) * in[i];
      if (i == batch.rows / 2)
        wrong |= msi_reply_rows(broker, i + 1, (const void *const *)batch.outputs) != 0;
    }
    wrong |= code != 0 || msi_reply_all(broker, (const void *const *)batch.outputs) != 0;
    if (broker->counters.batches % 10 == 0) suspend(serving, batch.service);
  }
  return NULL;
}

static void post(int service_index) {
  double in[1] = {1};
  uint64_t sequence;
  msi_endpoint endpoint = made_up_endpoint(&made, service_index, 0);
  endpoint.sent = made.serving.brokers[service_index].inboxes[MPISERVE_SHARED].lanes[0].taken;
  msi_payload payload = {.rows = 1, .input = {-1}, .output = {-1}, .inputs = {in}, .outputs = {in}};
  CHECK(!msi_endpoint_infer(&endpoint, MSI_INFER, &payload, NULL, &sequence));
}

static int next_service(void) {
  mpiserve_batch batch = {.service = -1};
  CHECK(!msi_serving_next(&made.serving, 60, &batch));
  return batch.service;
}

static void reply(int service_index) {
  const mpiserve_batch *batch = &made.serving.brokers[service_index].assembly.batch;
  CHECK(!msi_reply_all(&made.serving.brokers[service_index], batch->inputs));
}

/* Of a service that always has something to do and one that seldom has: each has its turn. */
static void check_turns(const mpiserve_description *descriptions) {
  CHECK(!made_up_open(&made, 1, SERVICES, descriptions));
  for (int first = 0; first < SERVICES; first++) {
    post(first);
    CHECK(next_service() == first);
    reply(first);
    post(first);
    post(1 - first);
    CHECK(next_service() == 1 - first);
    reply(1 - first);
    CHECK(next_service() == first);
    reply(first);
  }
  made_up_close(&made);
}

int main(void) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description twice = {.name = "twice",
                                .n_inputs = 1,
                                .n_outputs = 1,
                                .inputs = {spec},
                                .outputs = {spec},
                                .max_batch_rows = CLIENTS * MAX_ROWS,
                                .max_delay_ns = 1000000,
                                .max_queue_rows = MAX_ROWS};
  mpiserve_description descriptions[SERVICES] = {twice, twice};
  descriptions[1].max_batch_rows = MAX_ROWS;
  check_turns(descriptions);
  CHECK(!made_up_open(&made, CLIENTS, SERVICES, descriptions));
  race(&made, CLIENTS, head, client);
  CHECK(!wrong);
  mpiserve_counters counters;
  msi_serving_count(&made.serving, &counters);
  CHECK(counters.errors == 0);
  CHECK(counters.requests == 2 * CLIENTS * SERVICES * ROUNDS);
  for (int s = 0; s < SERVICES; s++)
    CHECK(made.serving.brokers[s].changes.generation == 1 + CLIENTS * SERVICES * ROUNDS / 100);
  made_up_close(&made);
  return check_result();
}
