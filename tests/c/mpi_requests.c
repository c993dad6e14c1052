/* ranks: 5
 *
 * Three simulation ranks query two services in C, several requests at a time, of
 * sizes that are eager, staged and cut, right and wrong. The inference ranks sit in
 * between. All of the library's own code runs here, so this is what the
 * sanitizers see. */
#include <mpi.h>
#include <stdlib.h>

#include "check.h"
#include "mpiserve.h"

enum { COLUMNS = 3, MAX_ROWS = 4096, IN_FLIGHT = 4, ROUNDS = 60 };

static const char *const NAMES[] = {"echo", "twice"};

static mpiserve_description describe(const char *name) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, COLUMNS}};
  mpiserve_description d = {.n_inputs = 1, .n_outputs = 1, .max_batch_rows = MAX_ROWS};
  snprintf(d.name, sizeof d.name, "%s", name);
  snprintf(d.engine, sizeof d.engine, "C");
  d.max_delay_ns = 200000;
  d.max_queue_rows = 2 * MAX_ROWS;
  d.inputs[0] = spec;
  snprintf(spec.name, sizeof spec.name, "y");
  d.outputs[0] = spec;
  return d;
}

/* Doubles; a batch that holds a negative number is an error of the model. */
static int answer(mpiserve_session *session, const mpiserve_batch *batch) {
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  for (int64_t i = 0; i < batch->rows * COLUMNS; i++) {
    if (x[i] < 0) return mpiserve_batch_fail(session, MPISERVE_EMODEL, "negative");
    y[i] = 2 * x[i];
  }
  return mpiserve_batch_reply(session, (const void *const *)batch->outputs);
}

static void serve(mpiserve_session *session, int which) {
  mpiserve_description description = describe(NAMES[which]);
  mpiserve_engine echo = {0};
  CHECK(mpiserve_publish(session, 1, &description) == MPISERVE_OK);
  if (which == 0) {
    CHECK(!mpiserve_engine_load(NULL, NULL, &description, &echo));
    CHECK(!mpiserve_engine_set(session, 0, &echo));
  }
  int code;
  do {
    mpiserve_batch batch;
    code = mpiserve_batch_next(session, 1.0, &batch);
    if (code == MPISERVE_OK) CHECK((code = answer(session, &batch)) == MPISERVE_OK);
  } while (code == MPISERVE_OK || code == MPISERVE_ETIMEOUT);
  CHECK(code == MPISERVE_ECLOSED);
  mpiserve_engine_close(&echo);
}

static unsigned draw(unsigned *seed) {
  *seed = *seed * 1664525U + 1013904223U;
  return *seed >> 16;
}

static mpiserve_tensor tensor(double *data, int64_t rows, int64_t columns) {
  return (mpiserve_tensor){
      .data = data, .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {rows, columns}};
}

/* Submits one request to each of IN_FLIGHT positions, then waits in another order. */
static void query(mpiserve_session *session, mpiserve_service **services, unsigned *seed) {
  mpiserve_request requests[IN_FLIGHT];
  double *x[IN_FLIGHT], *y[IN_FLIGHT];
  int64_t rows[IN_FLIGHT];
  for (int i = 0; i < IN_FLIGHT; i++) {
    rows[i] = 1 + draw(seed) % (i == 3 ? 3 * MAX_ROWS : i % 2 ? MAX_ROWS : 8);
    x[i] = malloc(sizeof(double) * COLUMNS * rows[i]); /* no byte more, so that ASan sees one */
    y[i] = calloc(COLUMNS * rows[i], sizeof(double));
    for (int64_t k = 0; k < COLUMNS * rows[i]; k++) x[i][k] = draw(seed) % 1000;
    mpiserve_tensor in = tensor(x[i], rows[i], COLUMNS), out = tensor(y[i], rows[i], COLUMNS);
    mpiserve_options wish = {.deadline = i % 3 * 60, .priority = (int)(draw(seed) % 5) - 2};
    CHECK(!mpiserve_submit(services[i / 2 % 2], 1, &in, 1, &out, &wish, &requests[i]));
  }
  for (int n = 0; n < IN_FLIGHT; n++) {
    int i = (n + 1) % IN_FLIGHT, factor = 1 + i / 2 % 2, wrong = 0;
    mpiserve_stats stats;
    CHECK(mpiserve_wait(session, &requests[i], 60, &stats) == MPISERVE_OK);
    CHECK(stats.rows == rows[i] && (stats.batch_rows >= rows[i] || rows[i] > MAX_ROWS) &&
          requests[i].id == 0);
    for (int64_t k = 0; k < COLUMNS * rows[i]; k++) wrong += y[i][k] != factor * x[i][k];
    CHECK(wrong == 0);
    free(x[i]);
    free(y[i]);
  }
}

/* Ten batches in one request: blocking, and not. */
static void query_ten_batches(mpiserve_session *session, mpiserve_service *twice) {
  enum { ROWS = 10 * MAX_ROWS, N = ROWS * COLUMNS };
  static double x[N], y[2][N];
  int done = 0, wrong = 0;
  for (int k = 0; k < N; k++) x[k] = k;
  mpiserve_tensor in = tensor(x, ROWS, COLUMNS);
  mpiserve_tensor out[] = {tensor(y[0], ROWS, COLUMNS), tensor(y[1], ROWS, COLUMNS)};
  mpiserve_request request;
  mpiserve_stats stats;
  CHECK(!mpiserve_submit(twice, 1, &in, 1, &out[0], NULL, &request));
  CHECK(!mpiserve_infer(twice, 1, &in, 1, &out[1], 60, NULL));
  while (!done) CHECK(!mpiserve_test(session, &request, &done, &stats));
  CHECK(stats.rows == ROWS && stats.batch_rows <= MAX_ROWS);
  for (int k = 0; k < N; k++) wrong += y[0][k] != 2 * x[k] || y[1][k] != 2 * x[k];
  CHECK(!wrong);
}

static void ask_wrongly(mpiserve_session *session, mpiserve_service *twice) {
  double x[2 * COLUMNS] = {1, 2, 3, 4, 5, 6}, y[2 * COLUMNS];
  mpiserve_tensor in = tensor(x, 2, COLUMNS), out = tensor(y, 2, COLUMNS);
  mpiserve_tensor narrow = tensor(x, 2, COLUMNS - 1), long_in = tensor(x, MAX_ROWS + 1, COLUMNS);
  mpiserve_service *none;
  CHECK(mpiserve_service_find(session, "none", &none) == MPISERVE_ENOTFOUND);
  CHECK_TEXT(mpiserve_last_error(), "twice");
  CHECK(mpiserve_infer(twice, 1, &narrow, 1, &out, 60, NULL) == MPISERVE_ESHAPE);
  CHECK(mpiserve_infer(twice, 1, &long_in, 1, &out, 60, NULL) == MPISERVE_EROWS);

  x[4] = -1;
  CHECK(mpiserve_infer(twice, 1, &in, 1, &out, 60, NULL) == MPISERVE_EMODEL);
  CHECK_TEXT(mpiserve_last_error(), "negative");
}

static void simulate(mpiserve_session *session) {
  MPI_Comm comm;
  int rank;
  mpiserve_service *services[2];
  mpiserve_counters counters;
  CHECK(mpiserve_comm(session, &comm) == MPISERVE_OK);
  MPI_Comm_rank(comm, &rank);
  for (int i = 0; i < 2; i++)
    CHECK(mpiserve_service_find(session, NAMES[i], &services[i]) == MPISERVE_OK);
  unsigned seed = (unsigned)rank;
  for (int i = 0; i < ROUNDS && !check_failures; i++) query(session, services, &seed);
  query_ten_batches(session, services[1]);
  MPI_Barrier(comm); /* else another rank's good rows share a batch with the bad ones */
  ask_wrongly(session, services[1]);
  MPI_Barrier(comm);
  query(session, services, &seed);
  CHECK(mpiserve_counters_get(session, &counters) == MPISERVE_OK);
  CHECK(counters.rma_to_simulation == 0);
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank % 2 ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  int code = mpiserve_open(MPI_COMM_WORLD, role, &session);
  if (code == MPISERVE_OK) {
    if (role == MPISERVE_INFERENCE)
      serve(session, rank / 2);
    else
      simulate(session);
    CHECK(mpiserve_close(session) == MPISERVE_OK);
  } else {
    printf("open: %s\n", mpiserve_last_error());
  }
  MPI_Finalize();
  return code ? 1 : check_result();
}
