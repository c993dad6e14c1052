/* A head that shows no sign of life, and its client, in the steps that matter; and a head that
 * waits in a thread of its own, for the thread sanitizer. */
#include "check.h"
#include "client/stopped.h"
#include "mpi/failure.h"
#include "race.h"

enum { ROWS = 8 };

static const int64_t LIMIT_NS = 1000000000;
static const double WAIT_S = 0.3, LONG_S = 20;

static msi_made_up made;
static msi_endpoint end;
static msi_send_queue queue;
static uint8_t dead[2];
static msi_identity ranks[2];
static msi_failure failure = {.ranks = ranks, .dead = dead};
static msi_client client = {.n_endpoints = 1,
                            .endpoints = &end,
                            .send_queues = &queue,
                            .world = &made.world,
                            .window = &made.window,
                            .stopped_limit_ns = LIMIT_NS};

static void begin(void) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "twice",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = ROWS};
  CHECK(!made_up_open(&made, 1, 1, &d));
  end = made_up_endpoint(&made, 0, 0);
  ranks[0] = ranks[1] = msi_identity_own(); /* both live */
  made.world.failure = &failure;
}

static void *serve(void *serving) {
  mpiserve_batch batch;
  CHECK(msi_serving_next(serving, WAIT_S, &batch) == MPISERVE_ETIMEOUT);
  return NULL;
}

static int64_t waits(void) { return msi_endpoint_waits(&end); }

static void check_a_head_shows_that_it_waits(void) {
  const int64_t limit = msi_deadline(LONG_S);
  pthread_t head;
  CHECK(!waits());
  pthread_create(&head, NULL, serve, &made.serving);
  while (!waits() && msi_now() < limit) sched_yield();
  CHECK(waits());
  pthread_join(head, NULL);
  CHECK(!waits());
}

static void set_waits(int64_t ago_ns) {
  atomic_store(&made.serving.header->waits_ns, ago_ns < 0 ? 0 : msi_now() - ago_ns);
}

/* Not before another look, as soon as clients do that. */
static msi_endpoint *look(void) {
  client.next_look_ns = 0;
  return msi_stopped_next(&client);
}

static void send(msi_call *call, int lease) {
  static double in[ROWS], out[ROWS];
  *call = (msi_call){.message = {.type = MESSAGE_REQUEST, .endpoint = &end},
                     .state = CALL_IN_FLIGHT,
                     .payload = {.rows = 1,
                                 .input = {.lease = -1},
                                 .output = {.lease = lease, .in_place = lease >= MSI_SLOTS},
                                 .inputs = {in},
                                 .outputs = {out}}};
  end.leases[lease].users = 1;
  CHECK(!msi_endpoint_infer(&end, MSI_INFER, &call->payload, &call->message, &call->sequence));
}

static void check_only_a_head_that_says_so_can_be_silent(void) {
  look();
  set_waits(-1);
  CHECK(!look() && !end.silent_ns); /* it runs a model, maybe */
  set_waits(LIMIT_NS / 2);
  CHECK(!look() && !end.silent_ns);
  set_waits(2 * LIMIT_NS);
  CHECK(look() == &end && end.stopped && client.unsettled == 1);
  CHECK(!look());
}

/* The slot and its rows stay taken until the head has answered. */
static void check_a_request_is_withdrawn(msi_call *call, int lease) {
  CHECK(msi_stopped_take(&client, &end) == &call->message);
  CHECK(!msi_stopped_take(&client, &end));
  CHECK(call->payload.output.lease == -1 && call->message.exposed == (lease >= MSI_SLOTS));
  CHECK(end.leases[lease].users == 1 && client.unsettled == 2);
  set_waits(0);
  CHECK(!look() && !end.stopped && client.unsettled == 1);
  CHECK(!msi_serving_poll(&made.serving));
  mpiserve_batch batch;
  CHECK(msi_serving_next(&made.serving, 0, &batch) == MPISERVE_ETIMEOUT);
  int slot = msi_endpoint_reply(&end);
  CHECK(slot >= 0 && end.path.slots[slot].reply.code == MPISERVE_EROWS);
  CHECK(!end.owners[slot]);
  msi_stopped_settle(&client, &end, slot);
  msi_endpoint_release(&end, slot);
  CHECK(end.leases[lease].users == 0 && client.unsettled == 0);
}

int main(void) {
  begin();
  check_a_head_shows_that_it_waits();
  for (int lease = 0; lease <= MSI_SLOTS; lease += MSI_SLOTS) {
    msi_call call;
    send(&call, lease);
    check_only_a_head_that_says_so_can_be_silent();
    check_a_request_is_withdrawn(&call, lease);
  }
  made.world.failure = NULL;
  made_up_close(&made);
  return check_result();
}
