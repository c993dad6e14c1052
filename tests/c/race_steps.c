/* A head and two clients in one thread, which takes their steps in the orders that matter: what
 * docs/internals/protocol_model.md proves of the model, looked at in the library. */
#include "check.h"
#include "head/leave.h"
#include "head/loss.h"
#include "head/reply.h"
#include "head/tickets.h"
#include "mpi/failure.h"
#include "race.h"

enum { CLIENTS = 2, MAX_ROWS = 100, POOL_ROWS = 2 * MAX_ROWS, ROUNDS = 300 };

static const int64_t LONG_NS = 1000000000000;
static const double LIMIT_S = 5;

static msi_made_up made;
static msi_endpoint ends[CLIENTS];
static msi_broker *broker;

/* ---- steps ------------------------------------------------------------------------------ */

static void begin(int64_t pool_rows, int64_t max_delay_ns) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "twice",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = MAX_ROWS,
                            .max_delay_ns = max_delay_ns,
                            .pool_bytes = pool_rows * 2 * (int64_t)sizeof(double)};
  CHECK(!made_up_open(&made, CLIENTS, 1, &d));
  for (uint32_t lane = 0; lane < CLIENTS; lane++) ends[lane] = made_up_endpoint(&made, 0, lane);
  broker = &made.serving.brokers[0];
}

static void poll(void) { CHECK(!msi_serving_poll(&made.serving)); }

static void send(int client, msi_kind kind, int64_t rows, int lease) {
  CHECK(!msi_endpoint_send(&ends[client], kind, rows, lease, NULL, NULL));
}

/* With rows of a lease, or in the slot if lease < 0. */
static uint64_t infer(int client, double first, int64_t rows, int lease) {
  double in[MAX_ROWS], out[MAX_ROWS];
  uint64_t sequence;
  msi_payload payload = {
      .rows = rows, .input = {lease}, .output = {lease}, .inputs = {in}, .outputs = {out}};
  for (int64_t i = 0; i < rows; i++) in[i] = first;
  CHECK(!msi_endpoint_infer(&ends[client], MSI_INFER, &payload, NULL, &sequence));
  return sequence;
}

/* Closes and answers a batch, whose rows must come in the order of submission. */
static int answer(double *last) {
  mpiserve_batch batch;
  if (msi_serving_next(&made.serving, 0, &batch)) return 0;
  const double *in = batch.inputs[0];
  double *out = batch.outputs[0];
  for (int64_t i = 0; i < batch.rows; i++) {
    CHECK(in[i] >= *last);
    *last = in[i];
    out[i] = 2 * in[i];
  }
  CHECK(!msi_reply_all(broker, (const void *const *)batch.outputs));
  return batch.requests;
}

/* The reply to the oldest request that has one. */
static const msi_reply_header *reply_of(int client) {
  int slot = msi_endpoint_reply(&ends[client]);
  static const msi_reply_header none = {.code = INT16_MIN};
  return slot < 0 ? &none : &ends[client].path.slots[slot].reply;
}

static int take(int client) {
  int slot = msi_endpoint_reply(&ends[client]), code = reply_of(client)->code;
  if (slot >= 0) msi_endpoint_release(&ends[client], slot);
  return code;
}

static msi_range lease(int client, int at, int64_t rows) {
  send(client, MSI_LEASE, rows, at);
  poll();
  const msi_reply_header *reply = reply_of(client);
  msi_range range = {reply->lease_begin, reply->rows};
  ends[client].leases[at] =
      (msi_lease){.begin = range.begin, .rows = range.rows, .once = (int)reply->lease_once};
  CHECK(take(client) == MPISERVE_OK);
  return range;
}

/* ---- slots ------------------------------------------------------------------------------ */

/* Up to all slots are rung for before the head looks, more often than a doorbell counts. */
static void check_doorbells(void) {
  double last = 0, next = 1;
  begin(0, 0);
  for (int i = 0; i < ROUNDS && !check_failures; i++) {
    int n = 1 + i % MSI_SLOTS, answered = 0;
    for (int k = 0; k < n; k++) infer(0, next++, 1, -1);
    for (int k = 0; k < n; k++) answered += answer(&last);
    CHECK(answered == n);
    for (int k = 0; k < n; k++) CHECK(take(0) == MPISERVE_OK);
    CHECK(reply_of(0)->code == INT16_MIN);
  }
  made_up_close(&made);
}

static void check_slot_is_free_after_its_reply_was_read(void) {
  double last = 0;
  begin(0, 0);
  for (int i = 0; i < MSI_SLOTS; i++) {
    CHECK(msi_endpoint_can_send(&ends[0]));
    infer(0, 1 + i, 1, -1);
  }
  CHECK(!msi_endpoint_can_send(&ends[0]));
  CHECK(answer(&last) == MSI_SLOTS);
  CHECK(!msi_endpoint_can_send(&ends[0]));
  CHECK(take(0) == MPISERVE_OK);
  CHECK(msi_endpoint_can_send(&ends[0]));
  made_up_close(&made);
}

/* A client that does not wait for its slots has as many requests at the head as all others. */
static void check_open_slot_is_not_taken(void) {
  begin(0, LONG_NS);
  send(1, MSI_ATTACH, 0, -1);
  for (int i = 0; i < 2 * MSI_SLOTS; i++) {
    infer(0, 1 + i, 1, -1);
    poll();
  }
  CHECK(broker->queue.n == MSI_SLOTS);
  made_up_close(&made);
}

static void check_cancelling_ends_with_its_request(void) {
  double last = 0;
  begin(0, 0);
  msi_endpoint_cancel(&ends[0], infer(0, 1, 1, -1));
  CHECK(answer(&last) == 0 && take(0) == MPISERVE_ECANCELLED);
  for (int i = 0; i < MSI_SLOTS; i++) {
    infer(0, 2 + i, 1, -1);
    CHECK(answer(&last) == 1 && take(0) == MPISERVE_OK);
  }
  made_up_close(&made);
}

/* ---- leases ----------------------------------------------------------------------------- */

static void check_rows_have_one_owner(void) {
  begin(POOL_ROWS, 0);
  msi_range one = lease(0, 0, 30), other = lease(1, 0, 30);
  CHECK(one.rows == 30 && other.rows == 30);
  CHECK(one.begin + one.rows <= other.begin || other.begin + other.rows <= one.begin);
  made_up_close(&made);
}

/* The other client has not asked: the batch stays open, and its rows the request's. */
static void check_rows_of_a_request_are_not_given_away(void) {
  begin(POOL_ROWS, LONG_NS);
  send(1, MSI_ATTACH, 0, -1);
  poll();
  CHECK(take(1) == MPISERVE_OK);
  msi_range range = lease(0, 0, 30);
  infer(0, 1, 30, 0);
  send(0, MSI_LEASE, 0, 0);
  poll();
  CHECK(take(0) == MPISERVE_EROWS);
  CHECK(lease(1, 0, 30).begin >= range.begin + range.rows);
  made_up_close(&made);
}

/* However the lower half is kept, the largest request fits into the upper one sooner or later. */
static void check_the_upper_half_is_lent(void) {
  begin(POOL_ROWS, 0);
  lease(0, 0, 1);
  CHECK(!ends[0].leases[0].once);
  lease(0, 1, MAX_ROWS);
  CHECK(ends[0].leases[1].once);
  send(1, MSI_KEEP, MAX_ROWS, MSI_SLOTS);
  poll();
  CHECK(take(1) == MPISERVE_ENOMEM);
  send(1, MSI_LEASE, MAX_ROWS, 0); /* waits */
  poll();
  CHECK(reply_of(1)->code == INT16_MIN);
  send(0, MSI_LEASE, 0, 1);
  poll();
  CHECK(take(0) == MPISERVE_OK && take(1) == MPISERVE_OK);
  made_up_close(&made);
}

/* ---- leaving ---------------------------------------------------------------------------- */

static void check_a_client_leaves_once(void) {
  begin(POOL_ROWS, 0);
  for (int i = 0; i < 2; i++) {
    send(0, MSI_LEAVE, 0, -1);
    poll();
    CHECK(take(0) == MPISERVE_OK && broker->remaining == 1);
  }
  send(1, MSI_LEAVE, 0, -1);
  mpiserve_batch batch;
  CHECK(msi_serving_next(&made.serving, 0, &batch) == MPISERVE_ECLOSED);
  made_up_close(&made);
}

/* A mark of the client's last request that is not taken yet is in the slot of another one. */
static void check_a_client_without_a_slot_leaves_by_a_mark(void) {
  double last = 0;
  begin(POOL_ROWS, 0);
  for (int round = 0; round < 2; round++) {
    CHECK(round == 0 || answer(&last) == MSI_SLOTS);
    for (int i = 0; i < MSI_SLOTS && round; i++) CHECK(take(0) == MPISERVE_OK);
    for (int i = 0; i < MSI_SLOTS; i++) infer(0, 1 + i + last, 1, -1);
  }
  CHECK(!msi_endpoint_can_send(&ends[0]));
  CHECK(!msi_endpoint_mark(&ends[0], MSI_HAS_LEFT));
  CHECK(!msi_leave_look(broker) && broker->remaining == 2);
  poll();
  for (int i = 0; i < 2; i++) CHECK(!msi_leave_look(broker) && broker->remaining == 1);
  made_up_close(&made);
}

static void check_a_client_without_a_slot_fails_by_a_mark(void) {
  begin(POOL_ROWS, 0);
  infer(0, 1, 1, -1);
  poll();
  CHECK(!msi_endpoint_mark(&ends[0], MSI_HAS_FAILED));
  CHECK(!msi_endpoint_mark(&ends[0], MSI_HAS_LEFT));
  CHECK(!msi_leave_look(broker) && broker->remaining == 1 && broker->failed_rank == 0);
  CHECK(take(0) == MPISERVE_EPEER);
  infer(1, 1, 1, -1);
  poll();
  CHECK(take(1) == MPISERVE_EPEER);
  made_up_close(&made);
}

/* Also what the head has not taken counts. */
static void check_whether_anybody_wants_answers(void) {
  for (int fails = 0; fails < 2; fails++)
    for (int marks = 0; marks < 2; marks++) {
      begin(POOL_ROWS, LONG_NS);
      send(1, MSI_ATTACH, 0, -1);
      CHECK(msi_serving_wanted(&made.serving));
      if (!fails) send(1, MSI_LEAVE, 0, -1);
      poll();
      for (int i = 0; i < MSI_SLOTS - 1 + marks; i++) infer(0, 1, 1, -1);
      CHECK(msi_serving_wanted(&made.serving));
      if (marks)
        CHECK(!msi_endpoint_mark(&ends[0], fails ? MSI_HAS_FAILED : MSI_HAS_LEFT));
      else
        send(0, fails ? MSI_FAIL : MSI_LEAVE, 0, -1);
      for (int i = 0; i < 2; i++) {
        CHECK(!msi_serving_wanted(&made.serving));
        poll();
      }
      made_up_close(&made);
    }
}

/* Rows that are granted to it when it has left are freed once more. */
static void check_rows_of_a_client_that_left_in_a_hurry_are_freed(void) {
  begin(POOL_ROWS, 0);
  const msi_row_pool *pool = &broker->inboxes[MPISERVE_SHARED].pool;
  lease(1, 0, MAX_ROWS);
  lease(1, 1, MAX_ROWS);
  send(0, MSI_LEASE, MAX_ROWS, 0); /* waits */
  poll();
  CHECK(!msi_endpoint_mark(&ends[0], MSI_HAS_LEFT));
  CHECK(!msi_leave_look(broker) && broker->remaining == 1);
  lease(1, 1, 0);
  CHECK(pool->used == 2 * MAX_ROWS);
  mpiserve_batch batch;
  CHECK(msi_serving_next(&made.serving, 0, &batch) == MPISERVE_ETIMEOUT);
  CHECK(pool->used == MAX_ROWS && !broker->dead_rows);
  made_up_close(&made);
}

/* ---- dying ------------------------------------------------------------------------------ */

static uint8_t dead[CLIENTS + 1];
static msi_failure failure = {.dead = dead};

static void look(void) {
  mpiserve_batch batch;
  CHECK(msi_serving_next(&made.serving, 0, &batch) == MPISERVE_ETIMEOUT);
}

static void die(int client) {
  made.world.failure = &failure;
  dead[client] = 1;
  failure.n_dead = 1;
}

static void end_death(void) {
  memset(dead, 0, sizeof dead);
  failure.n_dead = 0;
  made.world.failure = NULL;
  made_up_close(&made);
}

/* Its requests wait, or were not taken: nobody answers them, and its rows go to others. */
static void check_the_dead_have_left(void) {
  begin(POOL_ROWS, LONG_NS);
  send(1, MSI_ATTACH, 0, -1);
  poll();
  CHECK(take(1) == MPISERVE_OK);
  lease(0, 0, MAX_ROWS);
  infer(0, 1, MAX_ROWS, 0);
  poll();
  lease(1, 0, 1);
  send(1, MSI_LEASE, MAX_ROWS, 1); /* waits */
  poll();
  send(0, MSI_LEASE, 1, 1); /* is not taken */
  die(0);
  CHECK(!msi_loss_of_clients(broker));
  CHECK(broker->remaining == 1 && !broker->queue.n);
  CHECK(take(1) == MPISERVE_OK);
  poll();
  CHECK(broker->inboxes[MPISERVE_SHARED].pool.used == 1 + MAX_ROWS);
  end_death();
}

/* What is held reads its rows until it has ended. */
static void check_rows_of_the_dead_are_freed_later(void) {
  mpiserve_batch batch;
  mpiserve_ticket ticket;
  int wanted;
  begin(POOL_ROWS, 0);
  lease(0, 0, MAX_ROWS);
  infer(0, 1, MAX_ROWS, 0);
  CHECK(!msi_serving_next(&made.serving, 0, &batch));
  CHECK(!msi_tickets_hold(&made.serving, &ticket));
  const msi_row_pool *pool = &broker->inboxes[MPISERVE_SHARED].pool;
  die(0);
  look();
  CHECK(pool->used == MAX_ROWS);
  CHECK(!msi_tickets_wanted(&made.serving, &ticket, &wanted) && !wanted);
  look();
  CHECK(pool->used == 0);
  end_death();
}

/* A head that forms a batch whenever it looks never waits. */
static void check_the_dead_have_left_a_busy_head(void) {
  const int64_t limit = msi_deadline(LIMIT_S);
  double last = 0, next = 1;
  begin(POOL_ROWS, 0);
  lease(0, 0, MAX_ROWS);
  const msi_row_pool *pool = &broker->inboxes[MPISERVE_SHARED].pool;
  die(0);
  while (pool->used && msi_now() < limit) {
    infer(1, next++, 1, -1);
    CHECK(answer(&last) == 1 && take(1) == MPISERVE_OK);
  }
  CHECK(!pool->used && broker->remaining == 1);
  end_death();
}

int main(void) {
  check_doorbells();
  check_slot_is_free_after_its_reply_was_read();
  check_open_slot_is_not_taken();
  check_cancelling_ends_with_its_request();
  check_rows_have_one_owner();
  check_rows_of_a_request_are_not_given_away();
  check_the_upper_half_is_lent();
  check_a_client_leaves_once();
  check_a_client_without_a_slot_leaves_by_a_mark();
  check_a_client_without_a_slot_fails_by_a_mark();
  check_rows_of_a_client_that_left_in_a_hurry_are_freed();
  check_whether_anybody_wants_answers();
  check_the_dead_have_left();
  check_rows_of_the_dead_are_freed_later();
  check_the_dead_have_left_a_busy_head();
  return check_result();
}
