/* One simulation rank changes how many replicas of a service serve; each checks what it sees. */
#define _DEFAULT_SOURCE
#include <mpi.h>
#include <mpiserve.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { REPLICAS = 2, ALL = 3, ROWS = 4 };

static const double LONG = 60;
static mpiserve_session *session;
static mpiserve_service *twice;
static MPI_Comm comm;
static int rank, failures;

#define CHECK(condition) \
  do { \
    if (condition) break; \
    printf("rank %d, line %d: %s: %s\n", rank, __LINE__, #condition, mpiserve_last_error()); \
    failures++; \
  } while (0)
#define EXPECT(call, code, text) CHECK((call) == (code) && strstr(mpiserve_last_error(), (text)))

static int infer(float first) {
  float x[ROWS][3], y[ROWS][3];
  for (int i = 0; i < 3 * ROWS; i++) x[0][i] = first + (float)i;
  mpiserve_tensor in = {.data = x, .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {ROWS, 3}};
  mpiserve_tensor out = in;
  out.data = y;
  int code = mpiserve_infer(twice, 1, &in, 1, &out, LONG, NULL);
  for (int i = 0; i < 3 * ROWS && !code; i++) CHECK(y[0][i] == 2 * x[0][i]);
  return code;
}

static mpiserve_replica_state state_of(int replica) {
  mpiserve_replica_state state = {.state = -1};
  CHECK(!mpiserve_service_state_get(session, "twice", replica, &state));
  CHECK(state.rank == 2 + replica);
  if (state.state == MPISERVE_BUSY) state.state = MPISERVE_READY; /* the other rank asks */
  return state;
}

/* The first ones serve, and the others have been stopped, or are spares. */
static void serving(int n) {
  MPI_Barrier(comm);
  for (int i = 0; i < ALL; i++) {
    mpiserve_replica_state state = state_of(i);
    CHECK(state.state == (i < n ? MPISERVE_READY : MPISERVE_LAUNCHED));
    const int64_t *at = state.entered_ns;
    CHECK((at[MPISERVE_LAUNCHED] > at[MPISERVE_READY]) == (i >= n));
  }
  if (n) {
    CHECK(!mpiserve_service_wait_ready(session, "twice", LONG));
    for (int i = 0; i < 20; i++) CHECK(!infer((float)(100 * i + rank)));
  } else {
    EXPECT(mpiserve_service_wait_ready(session, "twice", 0.05), MPISERVE_ETIMEOUT, "not ready");
    EXPECT(infer(0), MPISERVE_EMODEL, "'twice' was stopped, and serves nowhere");
  }
  MPI_Barrier(comm);
}

static void refuse(void) {
  EXPECT(mpiserve_scale(session, "twice", 4, LONG), MPISERVE_EARG,
         "4 replicas; it has 2, and 1 spare ranks can serve it");
  EXPECT(mpiserve_scale(session, "twice", -1, LONG), MPISERVE_EARG, "-1 replicas");
  EXPECT(mpiserve_scale(session, "thrice", 1, LONG), MPISERVE_ENOTFOUND, "'twice'");
  EXPECT(mpiserve_start(session, "thrice", LONG), MPISERVE_ENOTFOUND, "'twice'");
  EXPECT(mpiserve_stop(session, "thrice", LONG), MPISERVE_ENOTFOUND, "'twice'");
}

/* After a time-out it happens later. */
static void scale_without_waiting(void) {
  int code = rank ? MPISERVE_OK : mpiserve_scale(session, "twice", ALL, 0);
  CHECK(code == MPISERVE_OK || code == MPISERVE_ETIMEOUT);
  for (int i = 0; i < 6000 && state_of(ALL - 1).state != MPISERVE_READY; i++) usleep(10000);
}

static void simulate(void) {
  CHECK(!mpiserve_service_find(session, "twice", &twice));
  serving(REPLICAS);
  if (rank == 0) CHECK(!mpiserve_scale(session, "twice", ALL, LONG));
  serving(ALL);
  if (rank == 1) CHECK(!mpiserve_scale(session, "twice", 1, LONG));
  serving(1);
  if (rank == 0) CHECK(!mpiserve_stop(session, "twice", LONG));
  serving(0);
  if (rank == 1) CHECK(!mpiserve_start(session, "twice", LONG));
  serving(REPLICAS);
  refuse();
  serving(REPLICAS);
  scale_without_waiting();
  serving(ALL);
}

int main(int argc, char **argv) {
  int provided;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  CHECK(!mpiserve_comm(session, &comm));
  MPI_Comm_rank(comm, &rank);
  simulate();
  CHECK(!mpiserve_close(session));
  MPI_Finalize();
  if (!failures) printf("rank %d saw what each change did\n", rank);
  return failures != 0;
}
