/* ranks: 4
 *
 * A server in C that can change its model, with two replicas: what its clients get before,
 * during and after, and when one replica cannot. */
#include <mpi.h>

#include "check.h"
#include "mpiserve.h"

enum { ROWS = 5, CLIENTS = 2 };

static const double LIMIT = 60;

typedef struct model {
  double factor, next; /* 0: none */
} model;

static int load(model *m, const mpiserve_change_request *change, int replica) {
  double factor = change->version[0] - '0';
  if (replica == 1 && factor == 9) return MPISERVE_EMODEL;
  m->next = change->version[0] ? factor : m->factor;
  return MPISERVE_OK;
}

static void obey(mpiserve_session *session, model *m, int replica) {
  mpiserve_change_request change;
  int code = MPISERVE_OK;
  CHECK(mpiserve_change_get(session, &change) == MPISERVE_OK);
  CHECK(change.client == 0 && change.service == 0);
  if (change.what == MPISERVE_LOAD) code = load(m, &change, replica);
  if (change.what == MPISERVE_SWAP) m->factor = m->next;
  if (change.what == MPISERVE_DROP) m->next = 0;
  if (change.what == MPISERVE_UNLOAD) m->factor = 0;
  CHECK(mpiserve_change_reply(session, change.service, code, code ? "no such weights" : NULL) ==
        MPISERVE_OK);
  CHECK(mpiserve_change_reply(session, change.service, code, NULL) == MPISERVE_ESTATE);
  CHECK(mpiserve_change_get(session, &change) == MPISERVE_ESTATE);
}

static void answer(mpiserve_session *session, const model *m, const mpiserve_batch *batch) {
  int32_t clients[CLIENTS * ROWS];
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  CHECK(mpiserve_batch_clients(session, clients) == MPISERVE_OK);
  for (int64_t i = 0; i < batch->rows; i++) {
    CHECK(clients[i] == (int)x[i] / 100);
    y[i] = m->factor * x[i];
  }
  if (m->factor)
    CHECK(mpiserve_batch_reply(session, (const void *const *)batch->outputs) == MPISERVE_OK);
  else
    CHECK(mpiserve_batch_fail(session, MPISERVE_EMODEL, "unloaded") == MPISERVE_OK);
}

static void serve(mpiserve_session *session, int replica) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "scale",
                            .version = "1",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = CLIENTS * ROWS,
                            .replica = replica};
  model m = {.factor = 1};
  mpiserve_batch batch;
  int code, asked = 0;
  CHECK(mpiserve_publish(session, 1, &d) == MPISERVE_OK);
  while ((code = mpiserve_batch_next(session, 1.0, &batch)) != MPISERVE_ECLOSED) {
    if (code == MPISERVE_OK) answer(session, &m, &batch);
    if (code == MPISERVE_ECHANGE) obey(session, &m, replica);
    asked += code == MPISERVE_ECHANGE;
  }
  CHECK(asked == 5); /* LOAD and SWAP, LOAD and DROP, UNLOAD: each told once */
}

static int ask(mpiserve_service *service, int rank, double factor, int64_t generation) {
  double in[ROWS], out[ROWS];
  mpiserve_stats stats = {0};
  mpiserve_tensor x = {.data = in, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {ROWS}}, y = x;
  y.data = out;
  for (int i = 0; i < ROWS; i++) in[i] = 100 * rank + i;
  int code = mpiserve_infer(service, 1, &x, 1, &y, LIMIT, &stats);
  for (int i = 0; i < ROWS && !code; i++) CHECK(out[i] == factor * in[i]);
  if (!code) CHECK(stats.generation == generation);
  return code;
}

static void simulate(mpiserve_session *session, int rank) {
  mpiserve_service *service;
  mpiserve_description d;
  MPI_Comm comm;
  mpiserve_comm(session, &comm);
  CHECK(mpiserve_service_find(session, "scale", &service) == MPISERVE_OK);
  CHECK(mpiserve_service_describe(service, &d, NULL, NULL, NULL) == MPISERVE_OK);
  CHECK(!strcmp(d.version, "1"));
  CHECK(ask(service, rank, 1, 1) == MPISERVE_OK);
  MPI_Barrier(comm);
  if (rank == 0) CHECK(mpiserve_reload(session, "scale", "3", LIMIT) == MPISERVE_OK);
  MPI_Barrier(comm);
  CHECK(ask(service, rank, 3, 2) == MPISERVE_OK);
  if (rank == 0) {
    CHECK(mpiserve_reload(session, "scale", "9", LIMIT) == MPISERVE_EMODEL);
    CHECK_TEXT(mpiserve_last_error(), "no such weights; the version before goes on");
    CHECK(mpiserve_reload(session, "skale", "9", LIMIT) == MPISERVE_ENOTFOUND);
    CHECK(mpiserve_reload(session, NULL, "9", LIMIT) == MPISERVE_EARG);
    CHECK(mpiserve_unload(session, NULL, LIMIT) == MPISERVE_EARG);
  }
  CHECK(ask(service, rank, 3, 2) == MPISERVE_OK);
  MPI_Barrier(comm);
  if (rank == 0) CHECK(mpiserve_unload(session, "scale", LIMIT) == MPISERVE_OK);
  MPI_Barrier(comm);
  CHECK(ask(service, rank, 0, 0) == MPISERVE_EMODEL);
  CHECK_TEXT(mpiserve_last_error(), "unloaded");
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank < CLIENTS ? MPISERVE_SIMULATION : MPISERVE_INFERENCE;
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  if (role == MPISERVE_SIMULATION)
    simulate(session, rank);
  else
    serve(session, rank - CLIENTS);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  MPI_Finalize();
  return check_result();
}
