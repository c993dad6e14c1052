/* ranks: 2
 *
 * Results that have begun to arrive when a request ends: where its outputs lie in the place of its
 * inputs, nobody has the inputs any more, and neither the fallback nor another replica gets them.
 */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "client/state.h"
#include "mpiserve.h"

enum { ROWS = 500 }; /* too many for a slot */

static const double SHORT = 0.2, LONG = 60;

static void serve(mpiserve_session *session) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "twice", .n_inputs = 1, .n_outputs = 1, .max_batch_rows = ROWS};
  d.inputs[0] = d.outputs[0] = spec;
  mpiserve_batch batch;
  int code;
  CHECK(!mpiserve_publish(session, 1, &d));
  while ((code = mpiserve_batch_next(session, LONG, &batch)) == MPISERVE_OK) {
    const double *x = batch.inputs[0];
    double *y = batch.outputs[0];
    for (int64_t i = 0; i < batch.rows; i++) y[i] = 2 * x[i];
    CHECK(!mpiserve_batch_reply(session, (const void *const *)batch.outputs));
  }
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the simulation rank ---------------------------------------------------------------- */

static int is_late(msi_path *path) {
  (void)path;
  return MSI_NOT_YET;
}

static int add_one(void *calls, int64_t rows, const void *const *inputs, void *const *outputs,
                   int code, const char *why) {
  CHECK(code == MPISERVE_ETIMEOUT && *why);
  ++*(int *)calls;
  for (int64_t i = 0; i < rows; i++) ((double *)outputs[0])[i] = ((const double *)inputs[0])[i] + 1;
  return 0;
}

static int ask(mpiserve_service *service, double *x, double *y) {
  mpiserve_tensor in = {NULL, x, MPISERVE_FLOAT64, 1, {ROWS}};
  mpiserve_tensor out = {NULL, y, MPISERVE_FLOAT64, 1, {ROWS}};
  for (int i = 0; i < ROWS; i++) x[i] = 3;
  return mpiserve_infer(service, 1, &in, 1, &out, SHORT, NULL);
}

static void simulate(mpiserve_session *session) {
  static const char why[] = "the outputs are in the place of the inputs";
  mpiserve_service *service;
  double x[ROWS], y[ROWS];
  int calls = 0;
  CHECK(!mpiserve_service_find(session, "twice", &service));
  CHECK(!mpiserve_fallback_set(service, add_one, &calls));
  CHECK(!ask(service, x, x) && x[ROWS - 1] == 6 && !calls);

  const msi_transport *real = service->endpoint->path.transport;
  msi_transport late = *real;
  late.read_end = is_late;
  service->endpoint->path.transport = &late;
  CHECK(!ask(service, x, y) && y[ROWS - 1] == 4 && calls == 1);
  CHECK(ask(service, x, x) == MPISERVE_ETIMEOUT && calls == 1);
  CHECK_TEXT(mpiserve_last_error(), why);
  service->endpoint->path.transport = real;

  CHECK(!ask(service, x, x) && x[ROWS - 1] == 6 && calls == 1);
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
