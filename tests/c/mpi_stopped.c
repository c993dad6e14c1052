/* ranks: 3
 *
 * A head stops, and goes on. What it has not answered is answered by the other one; what it writes
 * when it goes on reaches nobody; and then it serves again. */
#define _POSIX_C_SOURCE 200809L
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { HEADS = 2, ROWS = 60, ROUNDS = 50, IN_FLIGHT = 6 };

static const double LIMIT = 30;
static pid_t pids[1 + HEADS];

/* ---- the heads -------------------------------------------------------------------------- */

static void serve(mpiserve_session *session, int replica) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "twice",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = 4 * ROWS,
                            .stickiness = 1,
                            .replica = replica};
  mpiserve_batch batch;
  int code;
  CHECK(mpiserve_publish(session, 1, &d) == MPISERVE_OK);
  while (!(code = mpiserve_batch_next(session, LIMIT, &batch))) {
    const double *x = batch.inputs[0];
    double *y = batch.outputs[0];
    for (int64_t i = 0; i < batch.rows; i++) y[i] = 2 * x[i];
    CHECK(mpiserve_batch_reply(session, (const void *const *)batch.outputs) == MPISERVE_OK);
  }
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the client ------------------------------------------------------------------------- */

static mpiserve_service *service;

static mpiserve_tensor tensor(double *data, int64_t rows) {
  return (mpiserve_tensor){.data = data, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {rows}};
}

/* Small and large requests at once: more than a lane has slots. */
static void ask(mpiserve_session *session, double first) {
  static double in[IN_FLIGHT][ROWS], out[IN_FLIGHT][ROWS];
  mpiserve_request requests[IN_FLIGHT];
  for (int i = 0; i < IN_FLIGHT; i++) {
    int64_t rows = i % 2 ? ROWS : 2;
    for (int64_t r = 0; r < rows; r++) in[i][r] = first + i + (double)r;
    mpiserve_tensor x = tensor(in[i], rows), y = tensor(out[i], rows);
    CHECK(mpiserve_submit(service, 1, &x, 1, &y, NULL, &requests[i]) == MPISERVE_OK);
  }
  for (int i = 0; i < IN_FLIGHT; i++) {
    CHECK(mpiserve_wait(session, &requests[i], LIMIT, NULL) == MPISERVE_OK);
    for (int r = 0; r < (i % 2 ? ROWS : 2); r++) CHECK(out[i][r] == 2 * (first + i + r));
  }
}

static int state_of(mpiserve_session *session, int replica) {
  mpiserve_replica_state state;
  CHECK(mpiserve_service_state_get(session, "twice", replica, &state) == MPISERVE_OK);
  return state.state;
}

static void rounds(mpiserve_session *session, int replica, int until_stopped) {
  double end = MPI_Wtime() + LIMIT;
  int n = 0;
  while ((state_of(session, replica) == MPISERVE_SUSPENDED) != until_stopped && MPI_Wtime() < end)
    ask(session, 100 * ++n);
  CHECK((state_of(session, replica) == MPISERVE_SUSPENDED) == until_stopped);
  for (int i = 0; i < ROUNDS; i++) ask(session, 1000 * i);
}

static void stop_and_go_on(mpiserve_session *session) {
  mpiserve_counters counters;
  for (int replica = 0; replica < HEADS; replica++) {
    CHECK(mpiserve_counters_get(session, &counters) == MPISERVE_OK);
    int64_t before = counters.rerouted;
    kill(pids[1 + replica], SIGSTOP);
    rounds(session, replica, 1);
    kill(pids[1 + replica], SIGCONT);
    rounds(session, replica, 0);
    CHECK(mpiserve_counters_get(session, &counters) == MPISERVE_OK);
    CHECK(counters.rerouted > before && !counters.errors);
  }
}

static void simulate(mpiserve_session *session) {
  CHECK(mpiserve_service_find(session, "twice", &service) == MPISERVE_OK);
  for (int i = 0; i < ROUNDS; i++) ask(session, i);
  stop_and_go_on(session);
}

int main(int argc, char **argv) {
  int provided, rank, pid = (int)getpid();
  mpiserve_session *session;
  setenv("MPISERVE_STOPPED_TIMEOUT", "0.3", 1);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Allgather(&pid, 1, MPI_INT, pids, 1, MPI_INT, MPI_COMM_WORLD);
  int role = rank ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  if (rank)
    serve(session, rank - 1);
  else
    simulate(session);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  MPI_Finalize();
  return check_result();
}
