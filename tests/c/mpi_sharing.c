/* ranks: 2
 *
 * A session that others than its own thread use: a second thread, a process forked from it; and
 * time-outs that are no numbers. */
#define _GNU_SOURCE
#include <math.h>
#include <mpi.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { ROWS = 5, THREADS = 4, CALLS = 2000 };

#define EXPECT(call, code, text) \
  do { \
    CHECK((call) == (code)); \
    CHECK_TEXT(mpiserve_last_error(), text); \
  } while (0)

#ifdef __SANITIZE_ADDRESS__
#define LEAVE _exit /* what MPI holds, which a child cannot end, would be a leak */
#else
#define LEAVE exit
#endif

static const double LIMIT = 60;

static void serve(mpiserve_session *session) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "twice", .n_inputs = 1, .n_outputs = 1, .max_batch_rows = 64};
  d.inputs[0] = d.outputs[0] = spec;
  mpiserve_description rowless = d, broken = {.name = "broken", .error = MPISERVE_EMODEL};
  snprintf(rowless.name, sizeof rowless.name, "rowless");
  rowless.max_batch_rows = 0;
  mpiserve_description all[] = {d, broken, rowless};
  EXPECT(mpiserve_publish(session, 3, all), MPISERVE_ECONFIG, "max_batch_rows");
  mpiserve_batch batch;
  EXPECT(mpiserve_batch_next(session, -NAN, &batch), MPISERVE_EARG, "not a number");
  int code;
  while ((code = mpiserve_batch_next(session, 1.0, &batch)) != MPISERVE_ECLOSED) {
    if (code) continue;
    double *y = batch.outputs[0];
    for (int64_t i = 0; i < batch.rows; i++) y[i] = 2 * ((const double *)batch.inputs[0])[i];
    CHECK(mpiserve_batch_reply(session, (const void *const *)batch.outputs) == MPISERVE_OK);
  }
}

static int ask_within(mpiserve_service *twice, double value, double timeout,
                      mpiserve_stats *stats) {
  double x[ROWS], y[ROWS] = {0};
  mpiserve_tensor in = {.data = x, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {ROWS}}, out = in;
  out.data = y;
  for (int i = 0; i < ROWS; i++) x[i] = value + i;
  int code = mpiserve_infer(twice, 1, &in, 1, &out, timeout, stats);
  for (int i = 0; i < ROWS && !code; i++) CHECK(y[i] == 2 * x[i]);
  return code;
}

static int query(mpiserve_service *twice, double value) {
  return ask_within(twice, value, LIMIT, NULL);
}

/* ---- threads ------------------------------------------------------------------------- */

typedef struct worker {
  mpiserve_service *twice;
  pthread_mutex_t *lock; /* NULL: without one */
  int number, refused;
} worker;

static void *work(void *argument) {
  worker *w = argument;
  for (int i = 0; i < CALLS; i++) {
    if (w->lock) pthread_mutex_lock(w->lock);
    int code = query(w->twice, 1000 * w->number + i);
    if (code) EXPECT(code, MPISERVE_ESTATE, "threads use a session one at a time");
    w->refused += code != MPISERVE_OK;
    if (w->lock) pthread_mutex_unlock(w->lock);
  }
  return NULL;
}

/* Without a lock each call is right or refused; with one all are right. */
static int refused_of(mpiserve_service *twice, pthread_mutex_t *lock) {
  pthread_t threads[THREADS];
  worker workers[THREADS];
  int refused = 0;
  for (int i = 0; i < THREADS; i++) {
    workers[i] = (worker){twice, lock, i, 0};
    pthread_create(&threads[i], NULL, work, &workers[i]);
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
    refused += workers[i].refused;
  }
  return refused;
}

static void use_threads(mpiserve_service *twice) {
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  CHECK(refused_of(twice, NULL) > 0);
  CHECK(refused_of(twice, &lock) == 0);
}

/* ---- a forked process ------------------------------------------------------------------ */

static int be_child(mpiserve_session *session, mpiserve_service *twice) {
  static const char FORKED[] = "this process was forked from the one that opened the session";
  mpiserve_session *other = NULL;
  mpiserve_request request = {1};
  int n;
  EXPECT(query(twice, 7), MPISERVE_ESTATE, FORKED);
  EXPECT(mpiserve_wait(session, &request, 0, NULL), MPISERVE_ESTATE, FORKED);
  EXPECT(mpiserve_service_count(session, &n), MPISERVE_ESTATE, FORKED);
  EXPECT(mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &other), MPISERVE_ESTATE, FORKED);
  EXPECT(mpiserve_close(session), MPISERVE_ESTATE, FORKED);
  return check_result();
}

/* A request is under way meanwhile: its answer is the parent's. */
static void use_fork(mpiserve_session *session, mpiserve_service *twice) {
  double x = 21, y = 0;
  int status = -1;
  mpiserve_tensor in = {.data = &x, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {1}}, out = in;
  out.data = &y;
  mpiserve_request request;
  CHECK(mpiserve_submit(twice, 1, &in, 1, &out, NULL, &request) == MPISERVE_OK);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) LEAVE(be_child(session, twice));
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
  CHECK(mpiserve_wait(session, &request, LIMIT, NULL) == MPISERVE_OK && y == 42);
  CHECK(query(twice, 7) == MPISERVE_OK);
}

/* Nor may a child open a session of its own: MPI is the parent's. */
static void fork_without_session(void) {
  int status = -1;
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    mpiserve_session *other = NULL;
    EXPECT(mpiserve_open(MPI_COMM_SELF, MPISERVE_SIMULATION, &other), MPISERVE_ESTATE, "forked");
    LEAVE(check_result());
  }
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status));
}

/* ---- numbers ------------------------------------------------------------------------------ */

static void give_no_numbers(mpiserve_session *session, mpiserve_service *twice) {
  static const double times[] = {NAN, -NAN};
  mpiserve_request none = {0};
  mpiserve_stats stats = {.rows = 1};
  for (int i = 0; i < 2; i++) {
    EXPECT(ask_within(twice, 1, times[i], NULL), MPISERVE_EARG, "not a number");
    EXPECT(mpiserve_wait(session, &none, times[i], NULL), MPISERVE_EARG, "not a number");
    EXPECT(mpiserve_reload(session, "twice", "", times[i]), MPISERVE_EARG, "not a number");
    EXPECT(mpiserve_unload(session, "twice", times[i]), MPISERVE_EARG, "not a number");
  }
  CHECK(ask_within(twice, 1, INFINITY, &stats) == MPISERVE_OK && stats.rows == ROWS);
  CHECK(mpiserve_wait(session, &none, 1, &stats) == MPISERVE_ESTATE && stats.rows == 0);
}

static void simulate(mpiserve_session *session) {
  mpiserve_service *twice, *none;
  EXPECT(mpiserve_service_find(session, "broken", &none), MPISERVE_EMODEL, "could not be loaded");
  EXPECT(mpiserve_service_find(session, "rowless", &none), MPISERVE_EMODEL, "max_batch_rows");
  CHECK(mpiserve_service_find(session, "twice", &twice) == MPISERVE_OK);
  give_no_numbers(session, twice);
  use_threads(twice);
  use_fork(session, twice);
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  /* Threads of a simulation rank that take turns need what an inference rank needs. */
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  if (role == MPISERVE_INFERENCE)
    serve(session);
  else
    simulate(session);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  if (role == MPISERVE_SIMULATION) fork_without_session();
  MPI_Finalize();
  return check_result();
}
