/* ranks: 2
 *
 * A service that has its results where its inputs were, and rows of a buffer that are both: a
 * fallback gets the inputs as they were submitted, or is not called. */
#define _GNU_SOURCE
#include <math.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { ROWS = 50, NAP_MS = 400 };

static const double SHORT = 0.1, LONG = 60;

/* ---- the inference rank -------------------------------------------------------------- */

static mpiserve_description describe(void) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "over", .n_inputs = 1, .n_outputs = 1, .overwrites = 1};
  d.max_batch_rows = ROWS;
  d.inputs[0] = d.outputs[0] = spec;
  d.outputs[0].check = MPISERVE_FINITE;
  return d;
}

/* Doubles. Afterwards it fails for a negative number, and sleeps at 1000 or more; the root of -1 is
 * no number. */
static int answer(mpiserve_session *session, const mpiserve_batch *batch) {
  double first = *(const double *)batch->inputs[0], *y = batch->outputs[0];
  for (int64_t i = 0; i < batch->rows; i++) y[i] = 2 * ((const double *)batch->inputs[0])[i];
  if (first >= 1000) usleep(NAP_MS * 1000);
  if (first == -1) y[0] = NAN;
  if (first < -1) return mpiserve_batch_fail(session, MPISERVE_EMODEL, "negative");
  return mpiserve_batch_reply(session, (const void *const *)batch->outputs);
}

static void serve(mpiserve_session *session) {
  mpiserve_description description = describe();
  mpiserve_batch batch;
  int code;
  CHECK(!mpiserve_publish(session, 1, &description));
  while ((code = mpiserve_batch_next(session, LONG, &batch)) == MPISERVE_OK)
    CHECK(!answer(session, &batch));
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the simulation rank ---------------------------------------------------------------- */

typedef struct physics {
  double value; /* of each input */
  int calls;
} physics;

static int add_one(void *data, int64_t rows, const void *const *inputs, void *const *outputs,
                   int code, const char *why) {
  physics *p = data;
  const double *x = inputs[0];
  double *y = outputs[0];
  CHECK(code && *why);
  p->calls++;
  for (int64_t i = 0; i < rows; i++) CHECK(x[i] == p->value);
  for (int64_t i = 0; i < rows; i++) y[i] = x[i] + 1;
  return 0;
}

static int ask(mpiserve_service *service, physics *p, double *x, double *y, double value,
               double timeout) {
  mpiserve_tensor in = {NULL, x, MPISERVE_FLOAT64, 1, {ROWS}};
  mpiserve_tensor out = {NULL, y, MPISERVE_FLOAT64, 1, {ROWS}};
  *p = (physics){value, 0};
  for (int i = 0; i < ROWS; i++) x[i] = value;
  return mpiserve_infer(service, 1, &in, 1, &out, timeout, NULL);
}

static void test_own_memory(mpiserve_service *service, physics *p) {
  double x[ROWS], y[ROWS];
  CHECK(!ask(service, p, x, y, 3, LONG) && y[ROWS - 1] == 6 && !p->calls);
  CHECK(!ask(service, p, x, y, -3, LONG) && y[ROWS - 1] == -2 && p->calls == 1);
  CHECK(!ask(service, p, x, y, -1, LONG) && y[0] == 0 && p->calls == 1);
  CHECK(!ask(service, p, x, y, 2000, SHORT) && y[ROWS - 1] == 2001 && p->calls == 1);
}

/* Over shared the result is where the inputs were, or may be: then nobody has them any more. Over
 * rma the head has copies. */
static void test_buffer(mpiserve_service *service, physics *p, int copied) {
  static const char why[] = "the outputs are in the place of the inputs";
  mpiserve_buffer buffer;
  CHECK(!mpiserve_buffer_take(service, ROWS, &buffer));
  double *x = buffer.inputs[0], *y = buffer.outputs[0];
  CHECK(!ask(service, p, x, y, 3, LONG) && y[ROWS - 1] == 6 && !p->calls);
  for (double value = -3; value <= -1; value += 2) {
    int code = ask(service, p, x, y, value, LONG);
    CHECK(code == (copied ? MPISERVE_OK : MPISERVE_EMODEL) && p->calls == copied);
    if (!copied) CHECK_TEXT(mpiserve_last_error(), why);
  }
  CHECK(!mpiserve_buffer_give(service, &buffer));
}

static int is_rma(void) {
  const char *transport = getenv("MPISERVE_TRANSPORT");
  return transport && !strcmp(transport, "rma");
}

static void simulate(mpiserve_session *session) {
  mpiserve_service *service;
  physics p;
  CHECK(!mpiserve_service_find(session, "over", &service));
  CHECK(!mpiserve_fallback_set(service, add_one, &p));
  test_own_memory(service, &p);
  test_buffer(service, &p, is_rma());
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  int rank, level;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, role, &session));
  if (rank)
    serve(session);
  else
    simulate(session);
  CHECK(!mpiserve_close(session));
  MPI_Finalize();
  return check_result();
}
