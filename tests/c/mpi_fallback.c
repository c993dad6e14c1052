/* ranks: 3
 *
 * A function of the caller's answers what the service does not: which errors it gets and which it
 * does not, from which calls, and what it may do. */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { ROWS = 100, EAGER = 2, LATE = 1000 };

static const double SHORT = 0.1, LONG = 60;

/* Late requests have numbers, from 1. The model answers one when the client has released it. That
 * is no message of MPI: while a model runs, MPI is the broker thread's. */
static atomic_int *released;

static MPI_Win share_released(int rank) {
  MPI_Win window;
  MPI_Aint bytes = rank ? 0 : sizeof *released;
  int unit;
  MPI_Win_allocate_shared(bytes, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &released, &window);
  MPI_Win_shared_query(window, 0, &bytes, &unit, &released);
  if (!rank) atomic_store(released, 0);
  MPI_Barrier(MPI_COMM_WORLD);
  return window;
}

/* ---- the inference rank -------------------------------------------------------------- */

static mpiserve_description describe(void) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, 2}};
  mpiserve_description d = {.name = "moody", .n_inputs = 1, .n_outputs = 1, .max_batch_rows = ROWS};
  d.inputs[0] = d.outputs[0] = spec;
  return d;
}

static void wait_for_release(int number) {
  const int naps = (int)(LONG * 1000);
  for (int i = 0; atomic_load(released) < number && i < naps; i++) usleep(1000);
  CHECK(atomic_load(released) >= number);
}

/* Doubles; refuses a negative number, and waits at LATE and more. */
static int answer(mpiserve_session *session, const mpiserve_batch *batch) {
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  for (int64_t i = 0; i < 2 * batch->rows; i++) {
    if (x[i] > LATE) wait_for_release((int)x[i] - LATE);
    if (x[i] < 0) return mpiserve_batch_fail(session, MPISERVE_EMODEL, "negative");
    y[i] = 2 * x[i];
  }
  return mpiserve_batch_reply(session, (const void *const *)batch->outputs);
}

static void serve(mpiserve_session *session) {
  mpiserve_description description = describe();
  CHECK(!mpiserve_publish(session, 1, &description));
  int code;
  do {
    mpiserve_batch batch;
    code = mpiserve_batch_next(session, 1.0, &batch);
    if (code == MPISERVE_OK) CHECK((code = answer(session, &batch)) == MPISERVE_OK);
  } while (code == MPISERVE_OK || code == MPISERVE_ETIMEOUT);
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the simulation ranks ------------------------------------------------------------ */

typedef struct physics {
  mpiserve_service *service;
  int calls, code, returns;
  int64_t rows;
  const char *says;
  char why[MPISERVE_TEXT_SIZE];
  int inner; /* the code of a call of the same session */
} physics;

/* Adds 1. Queries the model too, which is not allowed. */
static int add_one(void *data, int64_t rows, const void *const *inputs, void *const *outputs,
                   int code, const char *why) {
  physics *p = data;
  const double *x = inputs[0];
  double *y = outputs[0];
  p->calls++;
  p->code = code;
  p->rows = rows;
  snprintf(p->why, sizeof p->why, "%s", why);
  for (int64_t i = 0; i < 2 * rows; i++) y[i] = x[i] + 1;
  mpiserve_tensor t = {NULL, y, MPISERVE_FLOAT64, 2, {1, 2}};
  p->inner = mpiserve_infer(p->service, 1, &t, 1, &t, LONG, NULL);
  CHECK_TEXT(mpiserve_last_error(), "a fallback must not call");
  mpiserve_error(MPISERVE_OK, p->says);
  return p->returns;
}

static mpiserve_tensor tensor(double *data, int64_t rows) {
  return (mpiserve_tensor){.data = data, .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {rows, 2}};
}

static void fill(double *x, double *y, int64_t rows, double value) {
  for (int64_t i = 0; i < 2 * rows; i++) {
    x[i] = value;
    y[i] = 0;
  }
}

static int wrong(const double *y, int64_t rows, double right) {
  int n = 0;
  for (int64_t i = 0; i < 2 * rows; i++) n += y[i] != right;
  return n;
}

/* Was the fallback called once since, and what was said? */
static void expect_called(physics *p, int code, const char *why, int64_t rows) {
  CHECK(p->calls == 1 && p->code == code && p->rows == rows);
  CHECK_TEXT(p->why, why);
  CHECK(p->inner == MPISERVE_ESTATE);
  p->calls = 0;
}

static void expect_stats(const mpiserve_stats *stats, int64_t source, int64_t rows,
                         int64_t fallback_rows) {
  CHECK(stats->source == source && stats->rows == rows && stats->fallback_rows == fallback_rows);
}

static void check_blocking(physics *p, double *x, double *y, int64_t rows) {
  mpiserve_tensor in = tensor(x, rows), out = tensor(y, rows);
  mpiserve_stats stats;
  fill(x, y, rows, -3);
  CHECK(!mpiserve_infer(p->service, 1, &in, 1, &out, LONG, &stats));
  CHECK(!wrong(y, rows, -2));
  expect_called(p, MPISERVE_EMODEL, "negative", rows);
  expect_stats(&stats, MPISERVE_FALLBACK, rows, rows);

  fill(x, y, rows, 3);
  CHECK(!mpiserve_infer(p->service, 1, &in, 1, &out, LONG, &stats));
  CHECK(!wrong(y, rows, 6) && !p->calls);
  expect_stats(&stats, MPISERVE_MODEL, rows, 0);
}

static void check_requests(mpiserve_session *session, physics *p, double *x, double *y,
                           int64_t rows) {
  mpiserve_tensor in = tensor(x, rows), out = tensor(y, rows);
  mpiserve_request request;
  int done = 0, code = MPISERVE_OK;
  fill(x, y, rows, -3);
  CHECK(!mpiserve_submit(p->service, 1, &in, 1, &out, NULL, &request));
  CHECK(!p->calls);
  while (!done && !code) code = mpiserve_test(session, &request, &done, NULL);
  CHECK(!code && !request.id && !wrong(y, rows, -2));
  expect_called(p, MPISERVE_EMODEL, "negative", rows);

  fill(x, y, rows, -3);
  CHECK(!mpiserve_submit(p->service, 1, &in, 1, &out, NULL, &request));
  CHECK(!mpiserve_wait(session, &request, LONG, NULL) && !wrong(y, rows, -2));
  expect_called(p, MPISERVE_EMODEL, "negative", rows);

  CHECK(!mpiserve_submit(p->service, 1, &in, 1, &out, NULL, &request));
  CHECK(!mpiserve_cancel(session, &request) && !p->calls);
}

/* The rows of the next late request. */
static double fill_late(double *x, double *y, int64_t rows) {
  const double value = atomic_load(released) + 1 + LATE;
  fill(x, y, rows, value);
  return value;
}

static void release(void) { atomic_fetch_add(released, 1); }

/* A request that was given up may still be computed: nothing may depend on the model's part. */
static void check_late(mpiserve_session *session, physics *p, double *x, double *y, int64_t rows) {
  mpiserve_tensor in = tensor(x, rows), out = tensor(y, rows);
  mpiserve_options options = {.deadline = SHORT};
  mpiserve_request request;
  mpiserve_stats stats;
  double value = fill_late(x, y, rows);
  CHECK(!mpiserve_infer(p->service, 1, &in, 1, &out, SHORT, &stats));
  CHECK(!wrong(y, rows, value + 1));
  expect_called(p, MPISERVE_ETIMEOUT, "no reply from rank", rows);
  expect_stats(&stats, MPISERVE_FALLBACK, rows, rows);
  release();

  value = fill_late(x, y, rows);
  CHECK(!mpiserve_submit(p->service, 1, &in, 1, &out, &options, &request));
  CHECK(!mpiserve_wait(session, &request, LONG, &stats) && !wrong(y, rows, value + 1));
  expect_called(p, MPISERVE_EDEADLINE, "deadline", rows);
  expect_stats(&stats, MPISERVE_FALLBACK, rows, rows);
  release();

  value = fill_late(x, y, rows);
  CHECK(!mpiserve_submit(p->service, 1, &in, 1, &out, NULL, &request));
  CHECK(mpiserve_wait(session, &request, SHORT, NULL) == MPISERVE_ETIMEOUT && !p->calls);
  release();
  CHECK(!mpiserve_wait(session, &request, LONG, NULL) && !wrong(y, rows, 2 * value) && !p->calls);
}

static void check_failing(physics *p, double *x, double *y) {
  mpiserve_tensor in = tensor(x, 1), out = tensor(y, 1), narrow = in;
  narrow.shape[1] = 1;
  fill(x, y, 1, -3);
  p->returns = 7;
  CHECK(mpiserve_infer(p->service, 1, &in, 1, &out, LONG, NULL) == MPISERVE_EMODEL);
  CHECK_TEXT(mpiserve_last_error(), "negative; the fallback failed: it returned 7");
  expect_called(p, MPISERVE_EMODEL, "negative", 1);
  p->says = "no mesh";
  CHECK(mpiserve_infer(p->service, 1, &in, 1, &out, LONG, NULL) == MPISERVE_EMODEL);
  CHECK_TEXT(mpiserve_last_error(), "negative; the fallback failed: no mesh");
  expect_called(p, MPISERVE_EMODEL, "negative", 1);
  p->returns = 0;
  p->says = "";

  CHECK(mpiserve_infer(p->service, 1, &narrow, 1, &out, LONG, NULL) == MPISERVE_ESHAPE);
  CHECK(!mpiserve_fallback_set(p->service, NULL, NULL));
  CHECK(mpiserve_infer(p->service, 1, &in, 1, &out, LONG, NULL) == MPISERVE_EMODEL);
  CHECK(!p->calls);
  CHECK(!mpiserve_fallback_set(p->service, add_one, p));
}

/* Rows of the head's memory: the model may go on writing there. Elsewhere they are the client's. */
static void check_buffer(mpiserve_session *session, physics *p, int is_heads) {
  mpiserve_buffer b;
  mpiserve_options options = {.deadline = SHORT};
  mpiserve_request request;
  CHECK(!mpiserve_buffer_take(p->service, ROWS, &b));
  double *x = b.inputs[0], *y = b.outputs[0];
  mpiserve_tensor in = tensor(x + 2, 3), out = tensor(y + 2, 3);
  fill(x, y, ROWS, -3);
  CHECK(!mpiserve_infer(p->service, 1, &in, 1, &out, LONG, NULL));
  CHECK(!wrong(y + 2, 3, -2) && !wrong(y, 1, 0) && !wrong(y + 8, 1, 0));
  expect_called(p, MPISERVE_EMODEL, "negative", 3);

  fill_late(x, y, ROWS);
  CHECK(!mpiserve_submit(p->service, 1, &in, 1, &out, &options, &request));
  int code = mpiserve_wait(session, &request, LONG, NULL);
  CHECK(code == (is_heads ? MPISERVE_EDEADLINE : MPISERVE_OK));
  if (is_heads) CHECK_TEXT(mpiserve_last_error(), "rows of a buffer");
  CHECK(p->calls == !is_heads);
  p->calls = 0;
  CHECK(!mpiserve_buffer_give(p->service, &b));
  release();
}

/* Another rank has failed: the job is at its end, and the physics must not hide that. */
static void check_peer(mpiserve_session *session, physics *p, double *x, double *y, int rank) {
  mpiserve_tensor in = tensor(x, 1), out = tensor(y, 1);
  MPI_Comm comm;
  CHECK(!mpiserve_comm(session, &comm));
  MPI_Barrier(comm); /* rank 0 has done the rest */
  if (rank) CHECK(!mpiserve_fail(session, "the mesh is tangled"));
  MPI_Barrier(comm);
  fill(x, y, 1, 3);
  if (!rank) CHECK(mpiserve_infer(p->service, 1, &in, 1, &out, LONG, NULL) == MPISERVE_EPEER);
  CHECK(!p->calls);
}

static void simulate(mpiserve_session *session, int rank) {
  physics p = {.says = ""};
  mpiserve_counters counters;
  int transport;
  double *x = malloc(sizeof(double) * 2 * ROWS), *y = malloc(sizeof(double) * 2 * ROWS);
  CHECK(!mpiserve_service_find(session, "moody", &p.service));
  CHECK(!mpiserve_service_describe(p.service, NULL, NULL, NULL, &transport));
  CHECK(mpiserve_fallback_set(NULL, add_one, &p) == MPISERVE_EARG);
  CHECK(!mpiserve_fallback_set(p.service, add_one, &p));
  for (int64_t rows = EAGER; !rank && rows <= ROWS; rows += ROWS - EAGER) {
    check_blocking(&p, x, y, rows);
    check_requests(session, &p, x, y, rows);
    check_late(session, &p, x, y, rows);
  }
  if (!rank) {
    check_failing(&p, x, y);
    check_buffer(session, &p, transport == MPISERVE_SHARED);
  }
  CHECK(!mpiserve_counters_get(session, &counters));
  CHECK(counters.fallbacks == (rank ? 0 : 2 * 5 + 1 + (transport != MPISERVE_SHARED)));
  check_peer(session, &p, x, y, rank);
  CHECK(!mpiserve_close(session));
  free(x);
  free(y);
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Win window = share_released(rank);
  int role = rank == 2 ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  int code = mpiserve_open(MPI_COMM_WORLD, role, &session);
  if (code == MPISERVE_OK && role == MPISERVE_INFERENCE) {
    serve(session);
    CHECK(mpiserve_close(session) == MPISERVE_OK);
  } else if (code == MPISERVE_OK) {
    simulate(session, rank);
  } else {
    printf("open: %s\n", mpiserve_last_error());
  }
  MPI_Win_free(&window);
  MPI_Finalize();
  return code ? 1 : check_result();
}
