/* ranks: 4
 *
 * A service that moves between its two replicas while its clients ask: who is turned away asks
 * the other one, with all that a request may have, and nothing is lost. */
#include <mpi.h>

#include "check.h"
#include "mpiserve.h"

enum { CLIENTS = 2, ROWS = 60, MOVES = 30, FLYING = 4, TURN = 1, STOP = 2, GO = 3 };

static const double LIMIT = 60, SOON = 0.05;

/* ---- inference ranks: one holds the service, the other one rests ------------------------ */

static int came(MPI_Comm comm, int peer, int tag) {
  int flag;
  MPI_Iprobe(peer, tag, comm, &flag, MPI_STATUS_IGNORE);
  if (flag) MPI_Recv(NULL, 0, MPI_BYTE, peer, tag, comm, MPI_STATUS_IGNORE);
  return flag;
}

static void answer(mpiserve_session *session, const mpiserve_batch *batch) {
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  for (int64_t i = 0; i < batch->rows; i++) y[i] = 3 * x[i];
  CHECK(mpiserve_suspend(session, 0, 1) == MPISERVE_ESTATE);
  CHECK(mpiserve_batch_reply(session, (const void *const *)batch->outputs) == MPISERVE_OK);
}

/* The other one serves before this one rests. */
static void hand_over(mpiserve_session *session, MPI_Comm comm, int peer) {
  MPI_Ssend(NULL, 0, MPI_BYTE, peer, TURN, comm);
  CHECK(mpiserve_suspend(session, 0, 1) == MPISERVE_OK);
  CHECK(mpiserve_suspend(session, 0, 1) == MPISERVE_OK);
  int64_t rows = -1;
  CHECK(mpiserve_queue_get(session, 0, &rows) == MPISERVE_OK && rows == 0);
}

/* A client stops both and starts the first one. */
static void obey(mpiserve_session *session) {
  if (came(MPI_COMM_WORLD, 0, STOP)) {
    CHECK(mpiserve_suspend(session, 0, 1) == MPISERVE_OK);
    MPI_Send(NULL, 0, MPI_BYTE, 0, STOP, MPI_COMM_WORLD);
  }
  if (came(MPI_COMM_WORLD, 0, GO)) CHECK(mpiserve_suspend(session, 0, 0) == MPISERVE_OK);
}

static void serve(mpiserve_session *session, const mpiserve_spec *spec, int replica) {
  mpiserve_description d = {.name = "triple",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {*spec},
                            .outputs = {*spec},
                            .max_batch_rows = 2 * ROWS,
                            .replica = replica};
  mpiserve_batch batch;
  MPI_Comm comm;
  mpiserve_comm(session, &comm);
  CHECK(mpiserve_publish(session, 1, &d) == MPISERVE_OK);
  CHECK(mpiserve_suspend(session, 1, 1) == MPISERVE_EARG);
  CHECK(mpiserve_suspend(session, 0, replica) == MPISERVE_OK);
  int code, holds = !replica, batches = 0, moves = 0;
  while ((code = mpiserve_batch_next(session, 0.001, &batch)) != MPISERVE_ECLOSED) {
    CHECK(code == MPISERVE_OK || code == MPISERVE_ETIMEOUT);
    if (code == MPISERVE_OK) answer(session, &batch);
    batches += code == MPISERVE_OK;
    if (!holds && came(comm, 1 - replica, TURN)) {
      CHECK(mpiserve_suspend(session, 0, 0) == MPISERVE_OK);
      holds = 1;
      batches = 0;
    }
    if (holds && batches >= 5 && moves < MOVES) {
      hand_over(session, comm, 1 - replica);
      holds = 0;
      moves++;
    }
    obey(session);
  }
  CHECK(moves == MOVES);
  mpiserve_counters counters;
  CHECK(mpiserve_counters_get(session, &counters) == MPISERVE_OK);
  CHECK(counters.errors == counters.cancelled);
}

/* ---- simulation ranks ------------------------------------------------------------------- */

typedef struct asked {
  double in[ROWS], out[ROWS];
  double *x, *y; /* these, or rows of a buffer */
  int rows;
  mpiserve_request request;
} asked;

static void ask(mpiserve_service *service, asked *a, int rows, double seed, double deadline) {
  mpiserve_options options = {.deadline = deadline};
  mpiserve_tensor x = {.data = a->x, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {rows}}, y = x;
  y.data = a->y;
  a->rows = rows;
  for (int i = 0; i < rows; i++) a->x[i] = seed + i;
  CHECK(mpiserve_submit(service, 1, &x, 1, &y, &options, &a->request) == MPISERVE_OK);
}

static void take(mpiserve_session *session, asked *a, double seed) {
  CHECK(mpiserve_wait(session, &a->request, LIMIT, NULL) == MPISERVE_OK);
  for (int i = 0; i < a->rows; i++) CHECK(a->y[i] == 3 * (seed + i) && a->x[i] == seed + i);
}

/* In the slot and in slabs, in place at home, with a deadline, cancelled, in pairs too many. */
static void round_of(mpiserve_session *session, mpiserve_service *service, asked *all, int k) {
  for (int i = 0; i < 2 * FLYING; i++)
    ask(service, &all[i], i % 2 ? ROWS : 3, 100 * k + i, i % 3 ? 0 : LIMIT);
  if (k % 5 == 0) CHECK(mpiserve_cancel(session, &all[FLYING].request) == MPISERVE_OK);
  for (int i = 0; i < 2 * FLYING; i++)
    if (all[i].request.id) take(session, &all[i], 100 * k + i);
}

/* Nobody serves: requests go round, and each way out is open. */
static void stop(mpiserve_session *session, mpiserve_service *service, asked *a) {
  for (int head = CLIENTS; head < CLIENTS + 2; head++) {
    MPI_Send(NULL, 0, MPI_BYTE, head, STOP, MPI_COMM_WORLD);
    MPI_Recv(NULL, 0, MPI_BYTE, head, STOP, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
  ask(service, &a[0], 3, 1, 0);
  ask(service, &a[1], ROWS, 2, SOON);
  ask(service, &a[2], ROWS, 3, 0);
  CHECK(mpiserve_wait(session, &a[1].request, LIMIT, NULL) == MPISERVE_EDEADLINE);
  CHECK(mpiserve_wait(session, &a[2].request, SOON, NULL) == MPISERVE_ETIMEOUT);
  CHECK(mpiserve_cancel(session, &a[2].request) == MPISERVE_OK);
  MPI_Send(NULL, 0, MPI_BYTE, CLIENTS, GO, MPI_COMM_WORLD);
  take(session, &a[0], 1);
}

static void simulate(mpiserve_session *session, int rank) {
  static asked all[2 * FLYING];
  mpiserve_service *service;
  mpiserve_buffer buffer;
  CHECK(mpiserve_service_find(session, "triple", &service) == MPISERVE_OK);
  CHECK(mpiserve_buffer_take(service, 2 * ROWS, &buffer) == MPISERVE_OK);
  for (int i = 0; i < 2 * FLYING; i++) {
    all[i].x = i / 2 == 1 ? (double *)buffer.inputs[0] + (i % 2) * ROWS : all[i].in;
    all[i].y = i / 2 == 1 ? (double *)buffer.outputs[0] + (i % 2) * ROWS : all[i].out;
  }
  for (int k = 0; k < 20 * MOVES; k++) round_of(session, service, all, k);
  MPI_Comm comm;
  mpiserve_comm(session, &comm);
  MPI_Barrier(comm);
  if (rank == 0) stop(session, service, all);
  MPI_Barrier(comm);
  /* What is under way at the end is answered by close, wherever it has gone. */
  for (int i = 0; i < FLYING; i++) ask(service, &all[i], i % 2 ? ROWS : 3, 7 + i, 0);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  for (int i = 0; i < FLYING; i++) CHECK(all[i].y[2] == 3 * (9.0 + i));
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank < CLIENTS ? MPISERVE_SIMULATION : MPISERVE_INFERENCE;
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  if (role == MPISERVE_SIMULATION) {
    simulate(session, rank);
  } else {
    serve(session, &spec, rank - CLIENTS);
    CHECK(mpiserve_close(session) == MPISERVE_OK);
  }
  MPI_Finalize();
  return check_result();
}
