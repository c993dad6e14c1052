/* ranks: 4
 *
 * A gateway beside two simulation ranks: no batch waits for it, and none is complete with it; its
 * requests are no misses of others; the session ends without it, and answers it until it leaves. */
#include <mpi.h>

#include "check.h"
#include "mpiserve.h"

enum { CLIENTS = 2, HEAD = CLIENTS, GATEWAY, ROUNDS = 20 };

static const double LIMIT = 60;

static int rank;
static mpiserve_session *session;
static mpiserve_service *patient, *hasty;

static void meet(void) { MPI_Barrier(MPI_COMM_WORLD); }

/* ---- the inference rank -------------------------------------------------------------------- */

static mpiserve_description describe(const char *name, int64_t max_delay_ns) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {-1, 1}};
  mpiserve_description d = {.n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = 64,
                            .max_delay_ns = max_delay_ns};
  snprintf(d.name, sizeof d.name, "%s", name);
  return d;
}

static void answer(int requests) {
  mpiserve_batch batch;
  int code = mpiserve_batch_next(session, LIMIT, &batch);
  CHECK(code == MPISERVE_OK);
  if (code) return;
  CHECK(batch.requests == requests);
  CHECK(mpiserve_batch_reply(session, batch.inputs) == MPISERVE_OK);
}

static void serve(void) {
  mpiserve_description d[] = {describe("patient", (int64_t)3600e9), describe("hasty", 1000000)};
  mpiserve_batch batch;
  mpiserve_counters counters;
  CHECK(mpiserve_publish(session, 2, d) == MPISERVE_OK);
  meet();
  /* A request of the gateway and one of two clients: the other client is waited for. */
  CHECK(mpiserve_batch_next(session, 0.3, &batch) == MPISERVE_ETIMEOUT);
  meet();
  answer(3);
  meet();
  for (int i = 0; i < ROUNDS; i++) answer(1);
  CHECK(mpiserve_counters_get(session, &counters) == MPISERVE_OK);
  CHECK(counters.closed_by_delay == ROUNDS && counters.closed_by_census == 1);
  meet();
  answer(1); /* after the clients have left */
  CHECK(mpiserve_batch_next(session, LIMIT, &batch) == MPISERVE_ECLOSED);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
}

/* ---- the clients --------------------------------------------------------------------------- */

static mpiserve_tensor tensor(float *x) {
  return (mpiserve_tensor){NULL, x, MPISERVE_FLOAT32, 2, {1, 1}};
}

static void ask(mpiserve_service *service, float value) {
  float y = 0;
  mpiserve_tensor in = tensor(&value), out = tensor(&y);
  CHECK(mpiserve_infer(service, 1, &in, 1, &out, LIMIT, NULL) == MPISERVE_OK);
  CHECK(y == value);
}

static void find(void) {
  CHECK(mpiserve_service_find(session, "patient", &patient) == MPISERVE_OK);
  CHECK(mpiserve_service_find(session, "hasty", &hasty) == MPISERVE_OK);
}

static void ask_early(int is_last) {
  float x = (float)rank + 1, y = 0;
  mpiserve_tensor in = tensor(&x), out = tensor(&y);
  mpiserve_request request;
  if (is_last) meet();
  CHECK(mpiserve_submit(patient, 1, &in, 1, &out, NULL, &request) == MPISERVE_OK);
  if (!is_last) meet();
  CHECK(mpiserve_wait(session, &request, LIMIT, NULL) == MPISERVE_OK && y == x);
}

static void simulate(void) {
  MPI_Comm comm;
  int size;
  CHECK(mpiserve_comm(session, &comm) == MPISERVE_OK);
  MPI_Comm_size(comm, &size);
  CHECK(size == CLIENTS);
  find();
  meet();
  ask_early(rank == 1);
  meet();
  meet();
  CHECK(mpiserve_close(session) == MPISERVE_OK);
}

static void until_gone(void) {
  mpiserve_replica_state state;
  double begin = MPI_Wtime();
  do {
    CHECK(mpiserve_service_state_get(session, "hasty", -1, &state) == MPISERVE_OK);
  } while (state.state != MPISERVE_GONE && MPI_Wtime() - begin < LIMIT);
  CHECK(state.state == MPISERVE_GONE);
}

static void pass_on(void) {
  MPI_Comm comm;
  int size;
  CHECK(mpiserve_comm(session, &comm) == MPISERVE_OK);
  MPI_Comm_size(comm, &size);
  CHECK(size == 1);
  CHECK(mpiserve_fail(session, "x") == MPISERVE_EARG);
  find();
  meet();
  ask_early(0);
  meet();
  for (int i = 0; i < ROUNDS; i++) ask(hasty, (float)i);
  meet();
  until_gone();
  ask(hasty, 7);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
}

int main(int argc, char **argv) {
  int provided;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank == HEAD      ? MPISERVE_INFERENCE
             : rank == GATEWAY ? MPISERVE_GATEWAY
                               : MPISERVE_SIMULATION;
  CHECK(mpiserve_open(MPI_COMM_WORLD, role, &session) == MPISERVE_OK);
  if (role == MPISERVE_INFERENCE) serve();
  if (role == MPISERVE_GATEWAY) pass_on();
  if (role == MPISERVE_SIMULATION) simulate();
  MPI_Finalize();
  return check_result();
}
