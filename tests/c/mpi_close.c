/* ranks: 3
 *
 * Close has an end. A head that is busy, or stopped, costs a client its limit, and the text says
 * what it does; when it goes on, it learns that the client has left, or failed, although all slots
 * were taken; a client that leaves early is not held by one that computes; MPI_Finalize closes
 * what is open. */
#define _POSIX_C_SOURCE 200809L
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { CLIENTS = 2, HEAD = CLIENTS, GO = 1, REQUESTS = 6 };

/* A window is left where a rank of it does not close it, and MPICH (5.0.2) then keeps memory. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libmpi.so"; }

static const double LIMIT = 20, SHORT = 0.3;
static const double HELD = 3; /* who leaves early, or after such a one, waits so long for others */
static int rank;
static pid_t head_pid;

static void tell(int other) { MPI_Send(NULL, 0, MPI_BYTE, other, GO, MPI_COMM_WORLD); }

static void hear(int other) {
  MPI_Recv(NULL, 0, MPI_BYTE, other, GO, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

static mpiserve_session *open_session(void) {
  mpiserve_session *session;
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "slow",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = 8};
  int role = rank == HEAD ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  if (rank == HEAD) CHECK(mpiserve_publish(session, 1, &d) == MPISERVE_OK);
  return session;
}

static int infer(mpiserve_session *session, double timeout) {
  mpiserve_service *service;
  double x = 1, y = 0;
  mpiserve_tensor in = {.data = &x, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {1}}, out = in;
  out.data = &y;
  CHECK(mpiserve_service_find(session, "slow", &service) == MPISERVE_OK);
  int code = mpiserve_infer(service, 1, &in, 1, &out, timeout, NULL);
  CHECK(code || y == 1);
  return code;
}

/* More than a lane has slots. */
static void submit_all(mpiserve_session *session) {
  static double x[REQUESTS], y[REQUESTS];
  mpiserve_service *service;
  mpiserve_request request;
  CHECK(mpiserve_service_find(session, "slow", &service) == MPISERVE_OK);
  for (int i = 0; i < REQUESTS; i++) {
    mpiserve_tensor in = {.data = x + i, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {1}};
    mpiserve_tensor out = in;
    out.data = y + i;
    CHECK(mpiserve_submit(service, 1, &in, 1, &out, NULL, &request) == MPISERVE_OK);
  }
}

/* Answers until all clients have left. A batch takes as long as a client says, if one does. */
static void serve(mpiserve_session *session, int waits_for) {
  mpiserve_batch batch;
  int code;
  while ((code = mpiserve_batch_next(session, LIMIT, &batch)) != MPISERVE_ECLOSED) {
    if (code) break;
    if (waits_for >= 0) hear(waits_for);
    waits_for = -1;
    CHECK(mpiserve_batch_reply(session, batch.inputs) == MPISERVE_OK);
  }
  CHECK(code == MPISERVE_ECLOSED);
}

static void close_in_vain(mpiserve_session *session, const char *what) {
  double begin = MPI_Wtime();
  CHECK(mpiserve_close_within(session, SHORT) == MPISERVE_ETIMEOUT);
  CHECK(MPI_Wtime() - begin > 0.9 * SHORT);
  CHECK_TEXT(mpiserve_last_error(), "inference rank 2 (pid ");
  CHECK_TEXT(mpiserve_last_error(), what);
  CHECK(mpiserve_close(session) == MPISERVE_ESTATE);
}

/* Where nothing is in the way: however slow the machine is. */
static void close_in_time(mpiserve_session *session) {
  CHECK(mpiserve_close_within(session, LIMIT) == MPISERVE_OK);
}

static void busy_head(void) {
  mpiserve_session *session = open_session();
  if (rank == HEAD) serve(session, 0);
  if (rank == 0) {
    CHECK(infer(session, SHORT) == MPISERVE_ETIMEOUT);
    submit_all(session);
    const char *transport = getenv("MPISERVE_TRANSPORT");
    int is_rma = transport && !strcmp(transport, "rma");
    close_in_vain(session, is_rma ? ": alive" : ": alive; it has been running a batch for");
    tell(HEAD);
  } else {
    close_in_time(session);
  }
}

static void stopped_head(void) {
  mpiserve_session *session = open_session();
  if (rank == HEAD) serve(session, -1);
  if (rank == 0) {
    CHECK(infer(session, LIMIT) == MPISERVE_OK);
    kill(head_pid, SIGSTOP);
    close_in_vain(session, ": stopped by a signal");
    kill(head_pid, SIGCONT);
    tell(1);
  } else {
    if (rank == 1) hear(0);
    close_in_time(session);
  }
}

static void ask_until_it_fails(mpiserve_session *session) {
  double end = MPI_Wtime() + LIMIT;
  int code;
  while (!(code = infer(session, LIMIT)) && MPI_Wtime() < end) continue;
  CHECK(code == MPISERVE_EPEER);
  CHECK_TEXT(mpiserve_last_error(), "simulation rank 0 ended with an error: it had no slot");
}

static void stopped_head_and_full_lane(int fails) {
  mpiserve_session *session = open_session();
  if (rank == HEAD) serve(session, -1);
  if (rank == 0) {
    CHECK(infer(session, LIMIT) == MPISERVE_OK);
    kill(head_pid, SIGSTOP);
    submit_all(session);
    if (fails) CHECK(mpiserve_fail(session, "too hot") == MPISERVE_ETIMEOUT);
    close_in_vain(session, ": stopped by a signal");
    kill(head_pid, SIGCONT);
    tell(1);
  } else {
    if (rank == 1) hear(0);
    if (rank == 1 && fails) ask_until_it_fails(session);
    close_in_time(session);
  }
}

/* The other client computes, and then makes a request: all of it works. */
static void early_leaver(void) {
  mpiserve_session *session = open_session();
  if (rank == HEAD) serve(session, -1);
  if (rank == 1) {
    hear(0);
    CHECK(infer(session, LIMIT) == MPISERVE_OK);
  }
  if (rank == 0) CHECK(infer(session, LIMIT) == MPISERVE_OK);
  CHECK(mpiserve_close_within(session, HELD) == MPISERVE_OK);
  if (rank == 0) tell(1);
}

/* Nobody closes. */
static void left_to_finalize(void) {
  mpiserve_session *session = open_session();
  if (rank == HEAD)
    serve(session, -1);
  else
    CHECK(infer(session, LIMIT) == MPISERVE_OK);
}

static void wrong_limits(void) {
  setenv("MPISERVE_CLOSE_TIMEOUT", "soon", 1);
  mpiserve_session *session;
  int role = rank == HEAD ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  CHECK(mpiserve_open(MPI_COMM_WORLD, role, &session) == MPISERVE_ECONFIG);
  CHECK_TEXT(mpiserve_last_error(), "MPISERVE_CLOSE_TIMEOUT");
  setenv("MPISERVE_CLOSE_TIMEOUT", "3", 1);
}

int main(int argc, char **argv) {
  int provided, pid = (int)getpid(), pids[CLIENTS + 1];
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Allgather(&pid, 1, MPI_INT, pids, 1, MPI_INT, MPI_COMM_WORLD);
  head_pid = pids[HEAD];
  wrong_limits();
  busy_head();
  stopped_head();
  stopped_head_and_full_lane(0);
  setenv("MPISERVE_CLOSE_TIMEOUT", "0.3", 1);
  stopped_head_and_full_lane(1);
  setenv("MPISERVE_CLOSE_TIMEOUT", "3", 1);
  early_leaver();
  left_to_finalize();
  MPI_Finalize();
  CHECK(mpiserve_close(NULL) == MPISERVE_OK);
  return check_result();
}
