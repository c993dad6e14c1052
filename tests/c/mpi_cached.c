/* ranks: 4
 *
 * A head that keeps answers: what the model gets, who waits for whom, and when it forgets. The
 * clients know nothing of it. */
#define _DEFAULT_SOURCE
#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

/* Rows are kept; by halves; one row is a batch; a batch waits for all; what the head should do; not
 * as it is described. */
enum { KEPT, HALVES, SINGLE, PATIENT, CONTROL, WRONG, SERVICES };
enum { FORGET_BY_ENGINE, FORGET_BY_SUSPENSION, FORGET_BY_ROWS };
enum { CLIENTS = 3, COLUMNS = 3, MOST = 64, CUT = 2 * MOST + 5, ROWS = 40, KEEPS = 1000 };

static const char *const NAMES[SERVICES] = {"kept",    "halves",  "single",
                                            "patient", "control", "wrong"};
static const double LIMIT = 30, SLICE = 0.02; /* seconds */
static const int64_t SOON_NS = 1000000, NEVER_NS = INT64_C(600000000000);

/* ---- the head ------------------------------------------------------------------------- */

typedef struct head {
  mpiserve_session *session;
  double factor;
  int64_t rows[SERVICES]; /* that the model got; of WRONG: time-outs */
} head;

static void describe(mpiserve_description *d, int service) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, COLUMNS}};
  *d = (mpiserve_description){.n_inputs = 1, .n_outputs = 1, .max_batch_rows = MOST};
  snprintf(d->name, sizeof d->name, "%s", NAMES[service]);
  d->inputs[0] = d->outputs[0] = spec;
  d->max_delay_ns = service == PATIENT ? NEVER_NS : SOON_NS;
  if (service == CONTROL) d->outputs[0].shape[1] = SERVICES;
  if (service == CONTROL) return;
  d->cache_rows = KEEPS;
  if (service == HALVES) d->cache_step = 0.5;
  if (service == SINGLE) d->max_batch_rows = 1;
  if (service == WRONG) d->overwrites = 1;
}

/* Another factor: answers that were kept are wrong from now on. */
static void control(head *h, const mpiserve_batch *batch) {
  double *y = batch->outputs[0];
  int what = (int)*(const double *)batch->inputs[0];
  for (int i = 0; i < SERVICES; i++) y[i] = (double)h->rows[i];
  CHECK(!mpiserve_batch_reply(h->session, (const void *const *)batch->outputs));
  if (what < 0) return;
  h->factor++;
  if (what == FORGET_BY_ENGINE) CHECK(!mpiserve_engine_set(h->session, KEPT, NULL));
  for (int on = 1; on >= 0 && what == FORGET_BY_SUSPENSION; on--)
    CHECK(!mpiserve_suspend(h->session, KEPT, on));
  if (what == FORGET_BY_ROWS) CHECK(!mpiserve_rows_set(h->session, KEPT, MPISERVE_TOGETHER));
}

static void answer(head *h, const mpiserve_batch *batch) {
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  h->rows[batch->service] += batch->rows;
  if (batch->service == CONTROL) {
    control(h, batch);
    return;
  }
  CHECK(batch->rows > 0 && !batch->in_place);
  for (int64_t i = 0; i < COLUMNS * batch->rows; i++) y[i] = h->factor * x[i];
  CHECK(!mpiserve_batch_reply(h->session, (const void *const *)batch->outputs));
}

static void change(head *h) {
  mpiserve_change_request request;
  CHECK(!mpiserve_change_get(h->session, &request));
  h->factor += request.what == MPISERVE_SWAP;
  CHECK(!mpiserve_change_reply(h->session, request.service, MPISERVE_OK, NULL));
}

static int publish(head *h) {
  mpiserve_description d[SERVICES];
  for (int i = 0; i < SERVICES; i++) describe(&d[i], i);
  return mpiserve_publish(h->session, SERVICES, d);
}

static void serve(mpiserve_session *session) {
  head h = {.session = session, .factor = 2};
  mpiserve_batch batch;
  mpiserve_counters count;
  int code;
  CHECK(publish(&h) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "'wrong': cache_rows, and outputs that overwrite the inputs");
  while ((code = mpiserve_batch_next(session, SLICE, &batch)) != MPISERVE_ECLOSED) {
    if (code == MPISERVE_ECHANGE)
      change(&h);
    else if (!code)
      answer(&h, &batch);
    else
      CHECK(code == MPISERVE_ETIMEOUT && ++h.rows[WRONG]);
  }
  CHECK(!mpiserve_counters_get(session, &count));
  int64_t rows = 0, crowded = -1;
  CHECK(!mpiserve_crowded_get(session, SINGLE, &crowded, &rows));
  CHECK(crowded >= 0 && crowded <= 1); /* what is kept by then lacks no room */
  rows = 0;
  for (int i = 0; i < WRONG; i++) rows += h.rows[i];
  CHECK(count.rows == rows + count.cache_hits);
  CHECK(count.cache_hits > 0 && count.cache_hits < count.cache_lookups && !count.errors);
  CHECK(count.cached_requests > 0 && count.cached_requests <= count.requests - count.batches);
  CHECK(!mpiserve_close(session));
}

/* ---- the clients ---------------------------------------------------------------------- */

typedef struct client {
  mpiserve_session *session;
  mpiserve_service *services[SERVICES];
  MPI_Comm comm;
  int rank;
} client;

static mpiserve_tensor tensor(double *data, int64_t rows, int64_t columns) {
  return (mpiserve_tensor){
      .data = data, .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {rows, columns}};
}

static mpiserve_stats infer(client *c, int service, double *x, double *y, int64_t rows) {
  mpiserve_tensor in = tensor(x, rows, COLUMNS), out = tensor(y, rows, COLUMNS);
  mpiserve_stats stats = {0};
  CHECK(!mpiserve_infer(c->services[service], 1, &in, 1, &out, LIMIT, &stats));
  return stats;
}

/* The rows that the models have got; what: the head should do then, or -1. */
static void tell(client *c, int what, int64_t rows[SERVICES]) {
  double x[COLUMNS] = {what}, y[SERVICES];
  mpiserve_tensor in = tensor(x, 1, COLUMNS), out = tensor(y, 1, SERVICES);
  CHECK(!mpiserve_infer(c->services[CONTROL], 1, &in, 1, &out, LIMIT, NULL));
  for (int i = 0; i < SERVICES; i++) rows[i] = (int64_t)y[i];
}

static int64_t rows_of(client *c, int service) {
  int64_t rows[SERVICES];
  tell(c, -1, rows);
  return rows[service];
}

/* Rows that begin with first, first + 1, ... The batch that they were in had so many rows. */
static void ask(client *c, int service, double first, int64_t rows, double factor,
                int64_t batch_rows) {
  double x[CUT * COLUMNS], y[CUT * COLUMNS] = {0};
  for (int64_t i = 0; i < rows * COLUMNS; i++)
    x[i] = i % COLUMNS ? (double)(i % COLUMNS) : first + (double)(i / COLUMNS);
  mpiserve_stats stats = infer(c, service, x, y, rows);
  for (int64_t i = 0; i < rows * COLUMNS; i++) CHECK(y[i] == factor * x[i]);
  CHECK(stats.rows == rows && (batch_rows < 0 || stats.batch_rows == batch_rows));
}

/* In slots, in leased rows, and in pieces. */
static void test_rows_that_are_kept_do_not_go_to_the_model(client *c) {
  ask(c, KEPT, 0, 3, 2, 3);
  ask(c, KEPT, 0, 3, 2, 0);
  ask(c, KEPT, 1, 1, 2, 0);
  ask(c, KEPT, -1, 5, 2, 2); /* -1 and 3 are new */
  ask(c, KEPT, -1, 5, 2, 0);
  ask(c, KEPT, -2, ROWS, 2, ROWS - 5);
  ask(c, KEPT, -2, ROWS, 2, 0);
  CHECK(rows_of(c, KEPT) == ROWS);
  ask(c, KEPT, 1000, CUT, 2, -1);
  ask(c, KEPT, 1000, CUT, 2, 0);
  ask(c, KEPT, 1000 + CUT - 7, CUT, 2, -1);
  CHECK(rows_of(c, KEPT) == ROWS + 2 * CUT - 7);
}

/* Its other work would wait for as long as rows are kept. */
static void test_a_head_without_batches_returns_at_its_time_out(client *c) {
  int64_t before[SERVICES], after[SERVICES];
  double begin = MPI_Wtime();
  tell(c, -1, before);
  for (int i = 0; i < 100 || MPI_Wtime() - begin < 50 * SLICE; i++) ask(c, KEPT, 0, 3, 2, 0);
  tell(c, -1, after);
  CHECK(after[WRONG] - before[WRONG] >= 5);
}

static void test_a_buffer_gets_answers_that_are_kept(client *c) {
  mpiserve_buffer buffer;
  CHECK(!mpiserve_buffer_take(c->services[KEPT], ROWS, &buffer));
  for (int new = 0; new < 2; new++) {
    double *x = buffer.inputs[0], *y = buffer.outputs[0];
    for (int64_t i = 0; i < ROWS * COLUMNS; i++)
      x[i] = i % COLUMNS ? (double)(i % COLUMNS) : (double)(i / COLUMNS - 2);
    memset(y, 0, ROWS * COLUMNS * sizeof *y);
    if (new) x[5 * COLUMNS] = 5000.5;
    CHECK(infer(c, KEPT, x, y, ROWS).batch_rows == new);
    for (int64_t i = 0; i < ROWS * COLUMNS; i++) CHECK(y[i] == 2 * x[i]);
  }
  CHECK(!mpiserve_buffer_give(c->services[KEPT], &buffer));
}

static void test_numbers_are_rounded(client *c) {
  double x[][COLUMNS] = {{1, 2, 3}, {1.2, 1.9, 2.8}, {1.3, 2, 3}}, y[COLUMNS];
  CHECK(infer(c, HALVES, x[0], y, 1).batch_rows == 1 && y[0] == 2);
  CHECK(infer(c, HALVES, x[1], y, 1).batch_rows == 0 && y[0] == 2 && y[2] == 6);
  CHECK(infer(c, HALVES, x[2], y, 1).batch_rows == 1 && y[0] == 2.6);
}

/* The second one waits for the batch of the first one, and is kept after that. */
static void test_what_waits_in_the_queue_is_kept_then(client *c) {
  enum { AT_ONCE = 8 };
  double x[COLUMNS] = {7, 8, 9}, y[AT_ONCE][COLUMNS];
  mpiserve_request requests[AT_ONCE];
  for (int i = 0; i < AT_ONCE; i++) {
    mpiserve_tensor in = tensor(x, 1, COLUMNS), out = tensor(y[i], 1, COLUMNS);
    CHECK(!mpiserve_submit(c->services[SINGLE], 1, &in, 1, &out, NULL, &requests[i]));
  }
  for (int i = 0; i < AT_ONCE; i++) {
    CHECK(!mpiserve_wait(c->session, &requests[i], LIMIT, NULL));
    CHECK(y[i][0] == 14 && y[i][2] == 18);
  }
  CHECK(rows_of(c, SINGLE) == 1);
}

/* Rank 0 has a new row, whose batch waits for the others; they ask for what is kept, one after the
 * other, once the head sleeps. Then nobody is left to wait for. */
static void test_nobody_waits_for_others(client *c) {
  double x[COLUMNS] = {-77, 1, 2}, y[COLUMNS];
  mpiserve_tensor in = tensor(x, 1, COLUMNS), out = tensor(y, 1, COLUMNS);
  mpiserve_request request;
  int done = 0;
  CHECK(!mpiserve_service_find(c->session, NAMES[PATIENT], &c->services[PATIENT]));
  MPI_Barrier(c->comm);
  ask(c, PATIENT, 9000 + c->rank, 1, 2, -1); /* all count */
  MPI_Barrier(c->comm);
  if (c->rank == 0) CHECK(!mpiserve_submit(c->services[PATIENT], 1, &in, 1, &out, NULL, &request));
  for (int turn = 1; turn < CLIENTS; turn++) {
    MPI_Barrier(c->comm);
    if (c->rank == 0) CHECK(!mpiserve_test(c->session, &request, &done, NULL) && !done);
    if (c->rank == turn) usleep(300000);
    if (c->rank == turn) ask(c, PATIENT, 9000, 1, 2, 0);
    MPI_Barrier(c->comm);
  }
  if (c->rank == 0) CHECK(!mpiserve_wait(c->session, &request, LIMIT, NULL) && y[0] == -154);
  MPI_Barrier(c->comm);
}

static void test_another_model_begins_with_nothing(client *c) {
  double factor = 3;
  CHECK(!mpiserve_reload(c->session, NAMES[KEPT], "next", LIMIT));
  ask(c, KEPT, 0, 3, factor++, 3);
  for (int what = FORGET_BY_ENGINE; what <= FORGET_BY_ROWS; what++) {
    int64_t rows[SERVICES];
    ask(c, KEPT, 0, 3, factor - 1, 0);
    tell(c, what, rows);
    ask(c, KEPT, 0, 3, factor++, 3);
  }
  ask(c, KEPT, 0, 3, factor - 1, 3); /* rows are together now, and nothing is kept */
}

static void simulate(client *c) {
  for (int i = 0; i < WRONG; i++)
    if (i != PATIENT) CHECK(!mpiserve_service_find(c->session, NAMES[i], &c->services[i]));
  MPI_Barrier(c->comm);
  if (c->rank == 0) test_rows_that_are_kept_do_not_go_to_the_model(c);
  if (c->rank == 0) test_a_head_without_batches_returns_at_its_time_out(c);
  MPI_Barrier(c->comm);
  if (c->rank == 1) test_a_buffer_gets_answers_that_are_kept(c);
  if (c->rank == 2) test_numbers_are_rounded(c);
  if (c->rank == 2) test_what_waits_in_the_queue_is_kept_then(c);
  test_nobody_waits_for_others(c);
  if (c->rank == 2) test_another_model_begins_with_nothing(c);
  CHECK(!mpiserve_close(c->session));
}

int main(int argc, char **argv) {
  int rank, level;
  client c = {0};
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  CHECK(!mpiserve_open(MPI_COMM_WORLD, rank < CLIENTS ? MPISERVE_SIMULATION : MPISERVE_INFERENCE,
                       &c.session));
  CHECK(!mpiserve_comm(c.session, &c.comm));
  c.rank = rank;
  if (rank < CLIENTS)
    simulate(&c);
  else
    serve(c.session);
  MPI_Finalize();
  return check_result();
}
