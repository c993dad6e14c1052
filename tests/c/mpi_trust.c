/* ranks: 3
 *
 * An output that clients do not see says how uncertain each row is: the caller learns which rows
 * are not trusted, and its function answers these. */
#include <math.h>
#include <mpi.h>
#include <stdlib.h>

#include "check.h"
#include "mpiserve.h"

enum { BATCH = 100, EAGER = 3, CUT = 250 };

static const double LIMIT = 0.5, LONG = 60;

/* ---- the inference rank -------------------------------------------------------------- */

/* y = 2 x, of which the uncertainty is the fraction of x: NaN at negative numbers. */
static mpiserve_description describe(void) {
  mpiserve_spec x = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {
      .name = "double", .n_inputs = 1, .n_outputs = 1, .max_batch_rows = BATCH, .uncertain = 1};
  d.inputs[0] = d.outputs[0] = x;
  d.outputs[0].check = MPISERVE_BOUNDS;
  d.outputs[0].min = -INFINITY;
  d.outputs[0].max = 1e6;
  d.outputs[1] = (mpiserve_spec){.name = "u",
                                 .dtype = MPISERVE_FLOAT32,
                                 .ndim = 1,
                                 .shape = {-1},
                                 .check = MPISERVE_BOUNDS,
                                 .min = -INFINITY,
                                 .max = LIMIT};
  return d;
}

static void serve(mpiserve_session *session) {
  mpiserve_description description = describe();
  CHECK(!mpiserve_publish(session, 1, &description));
  int code;
  do {
    mpiserve_batch batch;
    code = mpiserve_batch_next(session, 1.0, &batch);
    if (code != MPISERVE_OK) continue;
    const double *x = batch.inputs[0];
    double *y = batch.outputs[0];
    float *u = batch.outputs[1];
    for (int64_t i = 0; i < batch.rows; i++) y[i] = 2 * x[i];
    for (int64_t i = 0; i < batch.rows; i++) u[i] = (float)(x[i] < 0 ? NAN : x[i] - floor(x[i]));
    CHECK(!mpiserve_batch_reply(session, (const void *const *)batch.outputs));
  } while (code == MPISERVE_OK || code == MPISERVE_ETIMEOUT);
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the simulation ranks ------------------------------------------------------------ */

typedef struct physics {
  int calls, returns;
  int64_t rows;
  double first;
  char why[MPISERVE_TEXT_SIZE];
} physics;

static int negate(void *data, int64_t rows, const void *const *inputs, void *const *outputs,
                  int code, const char *why) {
  physics *p = data;
  const double *x = inputs[0];
  double *y = outputs[0];
  CHECK(code == MPISERVE_EMODEL);
  p->first = x[0];
  p->calls++;
  p->rows += rows;
  snprintf(p->why, sizeof p->why, "%s", why);
  for (int64_t i = 0; i < rows; i++) y[i] = -x[i];
  return p->returns;
}

static mpiserve_tensor tensor(double *data, int64_t rows) {
  return (mpiserve_tensor){.data = data, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {rows}};
}

/* Every third row has the uncertainty 0.75. */
static double x_of(int64_t i) { return (double)i + (i % 3 == 2 ? 0.75 : 0.25); }

static void fill(double *x, double *y, int64_t rows) {
  for (int64_t i = 0; i < rows; i++) x[i] = x_of(i);
  for (int64_t i = 0; i < rows; i++) y[i] = 0;
}

static int64_t ask(mpiserve_session *session, mpiserve_service *service, double *x, double *y,
                   int64_t rows, uint8_t *trusted, mpiserve_stats *stats) {
  mpiserve_tensor in = tensor(x, rows), out = tensor(y, rows);
  mpiserve_options options = {.trusted = trusted};
  mpiserve_request request;
  for (int64_t i = 0; i < rows; i++) trusted[i] = 7;
  int code = mpiserve_submit(service, 1, &in, 1, &out, &options, &request);
  return code ? code : mpiserve_wait(session, &request, LONG, stats);
}

/* Rows that are not trusted are answers all the same, or the function's. */
static void check_rows(mpiserve_session *session, mpiserve_service *service, physics *p, double *x,
                       double *y, int64_t rows) {
  uint8_t trusted[CUT];
  mpiserve_stats stats;
  int wrong = 0, pieces = (int)((rows - 1) / BATCH) + 1;
  fill(x, y, rows);
  CHECK(!ask(session, service, x, y, rows, trusted, &stats));
  for (int64_t i = 0; i < rows; i++) wrong += y[i] != (p && i % 3 == 2 ? -1 : 2) * x_of(i);
  for (int64_t i = 0; i < rows; i++) wrong += trusted[i] != (i % 3 != 2);
  CHECK(!wrong && stats.rows == rows && stats.untrusted_rows == rows / 3);
  CHECK(stats.fallback_rows == (p ? rows / 3 : 0));
  CHECK(stats.source == (p ? MPISERVE_FALLBACK : MPISERVE_MODEL));
  if (!p) return;
  CHECK(p->calls == pieces && p->rows == rows / 3);
  CHECK_TEXT(p->why, "is not trusted: its uncertainty is 0.75, and the limit 0.5");
  *p = (physics){0};
}

/* Both kinds of doubtful rows go to the function in one call; without one, a failed row fails. */
static void check_failed_and_uncertain(mpiserve_session *session, mpiserve_service *service,
                                       physics *p) {
  double x[4] = {1e9, 2.75, -1, 1}, y[4];
  uint8_t trusted[4];
  mpiserve_stats stats;
  int code = (int)ask(session, service, x, y, 4, trusted, &stats);
  if (!p) {
    CHECK(code == MPISERVE_EMODEL);
    CHECK_TEXT(mpiserve_last_error(), "row 0: 2e+09 is not within -inf to 1e+06 (1 of 4 rows)");
    return;
  }
  CHECK(!code && p->calls == 1 && p->rows == 3);
  CHECK(y[0] == -1e9 && y[1] == -2.75 && y[2] == 1 && y[3] == 2);
  CHECK(!trusted[0] && !trusted[1] && !trusted[2] && trusted[3]);
  CHECK(stats.untrusted_rows == 2 && stats.fallback_rows == 3);
  *p = (physics){.returns = 3};
  CHECK(ask(session, service, x + 1, y, 1, trusted, &stats) == MPISERVE_EMODEL);
  CHECK_TEXT(mpiserve_last_error(), "(1 of 1 rows); the fallback failed: it returned 3");
  *p = (physics){0};
}

static void check_buffer(mpiserve_session *session, mpiserve_service *service, physics *p) {
  mpiserve_buffer b;
  CHECK(!mpiserve_buffer_take(service, BATCH, &b));
  double *x = b.inputs[0], *y = b.outputs[0];
  for (int round = 0; round < 2; round++) check_rows(session, service, p, x + 10, y + 10, 60);
  CHECK(!mpiserve_buffer_give(service, &b));
}

/* The output is not there for clients. */
static void check_signature(mpiserve_service *service, double *x, double *y) {
  mpiserve_description d;
  mpiserve_tensor in = tensor(x, 1), out[2] = {tensor(y, 1), tensor(y, 1)};
  CHECK(!mpiserve_service_describe(service, &d, NULL, NULL, NULL));
  CHECK(d.n_outputs == 1 && d.uncertain == 1 && d.outputs[1].max == LIMIT);
  CHECK(mpiserve_infer(service, 1, &in, 2, out, LONG, NULL) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "2 outputs given, the signature has 1 (x)");
  out[0].name = "u";
  CHECK(mpiserve_infer(service, 1, &in, 1, out, LONG, NULL) == MPISERVE_ENAME);
}

static void simulate(mpiserve_session *session) {
  static double x[CUT], y[CUT];
  mpiserve_service *service;
  mpiserve_counters counters;
  physics p = {0};
  CHECK(!mpiserve_service_find(session, "double", &service));
  check_signature(service, x, y);
  int64_t sizes[] = {EAGER, BATCH, CUT}, untrusted = 0;
  for (int with = 0; with < 2; with++) {
    CHECK(!mpiserve_fallback_set(service, with ? negate : NULL, &p));
    for (int i = 0; i < 3; i++) {
      check_rows(session, service, with ? &p : NULL, x, y, sizes[i]);
      untrusted += sizes[i] / 3;
    }
    check_buffer(session, service, with ? &p : NULL);
    check_failed_and_uncertain(session, service, with ? &p : NULL);
    untrusted += 2 * 20 + 2 + with;
  }
  CHECK(!mpiserve_counters_get(session, &counters));
  CHECK(counters.untrusted_rows == untrusted && counters.failed_rows == 2);
  CHECK(!mpiserve_close(session));
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank == 2 ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  int code = mpiserve_open(MPI_COMM_WORLD, role, &session);
  if (code == MPISERVE_OK && role == MPISERVE_INFERENCE) {
    serve(session);
    CHECK(mpiserve_close(session) == MPISERVE_OK);
  } else if (code == MPISERVE_OK) {
    simulate(session);
  } else {
    printf("open: %s\n", mpiserve_last_error());
  }
  MPI_Finalize();
  return code ? 1 : check_result();
}
