/* ranks: 2
 *
 * One rank serves two services: what is asked of one says what becomes of the other. A third one
 * could not load its model. The simulation rank reads their states, and waits for readiness. */
#define _GNU_SOURCE
#include <mpi.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { LED, ORDERS, BROKEN, SERVICES };
enum { SUSPEND, RESUME, RESTART, FAIL, HEAL, SLEEP };

static const char *const NAMES[] = {"led", "orders", "broken"};
static const double SHORT = 0.05, LONG = 60;

#define EXPECT(call, code, text) \
  do { \
    CHECK((call) == (code)); \
    CHECK_TEXT(mpiserve_last_error(), text); \
  } while (0)

/* ---- the inference rank -------------------------------------------------------------- */

static void follow(mpiserve_session *session, int order) {
  switch (order) {
    case SUSPEND: CHECK(!mpiserve_suspend(session, LED, 1)); break;
    case RESUME: CHECK(!mpiserve_suspend(session, LED, 0)); break;
    case RESTART: CHECK(!mpiserve_state_set(session, LED, MPISERVE_RESTARTING)); break;
    case FAIL: CHECK(!mpiserve_state_set(session, LED, MPISERVE_FAILED)); break;
    case HEAL: CHECK(!mpiserve_state_set(session, LED, MPISERVE_READY)); break;
    default: usleep(300000);
  }
}

static void check_wrong_states(mpiserve_session *session) {
  const int wrong[] = {-1, MPISERVE_BUSY, MPISERVE_SUSPENDED, MPISERVE_GONE, MPISERVE_STATES};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    EXPECT(mpiserve_state_set(session, LED, wrong[i]), MPISERVE_EARG, "no state that a server");
  EXPECT(mpiserve_state_set(session, SERVICES, MPISERVE_READY), MPISERVE_EARG, "service 3 of 3");
}

static void serve(mpiserve_session *session) {
  mpiserve_description all[SERVICES] = {{.name = ""}};
  for (int i = 0; i < SERVICES; i++) {
    mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_INT32, .ndim = 1, .shape = {-1}};
    snprintf(all[i].name, sizeof all[i].name, "%s", NAMES[i]);
    all[i].n_inputs = all[i].n_outputs = 1;
    all[i].max_batch_rows = 8;
    all[i].inputs[0] = all[i].outputs[0] = spec;
  }
  all[BROKEN].error = MPISERVE_EMODEL;
  snprintf(all[BROKEN].error_text, sizeof all[BROKEN].error_text, "no weights");
  CHECK(mpiserve_state_set(session, LED, MPISERVE_READY) == MPISERVE_ESTATE);
  CHECK(!mpiserve_publish(session, SERVICES, all));
  check_wrong_states(session);
  int code;
  do {
    mpiserve_batch batch;
    code = mpiserve_batch_next(session, 1.0, &batch);
    if (code) continue;
    if (batch.service == ORDERS) follow(session, *(const int32_t *)batch.inputs[0]);
    CHECK(!mpiserve_batch_reply(session, batch.inputs));
  } while (code == MPISERVE_OK || code == MPISERVE_ETIMEOUT);
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the simulation rank ------------------------------------------------------------- */

static mpiserve_tensor tensor(int32_t *value) {
  return (mpiserve_tensor){.data = value, .dtype = MPISERVE_INT32, .ndim = 1, .shape = {1}};
}

static void order(mpiserve_service *orders, int32_t what) {
  mpiserve_tensor x = tensor(&what);
  CHECK(!mpiserve_infer(orders, 1, &x, 1, &x, LONG, NULL));
}

/* The state of a service, and that it is the last one that was entered. */
static int state_of(mpiserve_session *session, const char *name) {
  mpiserve_replica_state best, first;
  CHECK(!mpiserve_service_state_get(session, name, -1, &best));
  CHECK(!mpiserve_service_state_get(session, name, 0, &first));
  CHECK(best.rank == 1 && first.rank == 1 && !best.replica && !first.replica);
  for (int i = 0; i < MPISERVE_STATES && best.state != MPISERVE_BUSY; i++)
    CHECK(i == MPISERVE_BUSY || best.entered_ns[i] <= best.entered_ns[best.state]);
  return best.state;
}

static void check_first(mpiserve_session *session) {
  mpiserve_replica_state s;
  mpiserve_service *none;
  CHECK(!mpiserve_service_state_get(session, "led", -1, &s) && s.state == MPISERVE_READY);
  CHECK(s.entered_ns[MPISERVE_LAUNCHED] > 0 && !s.entered_ns[MPISERVE_SUSPENDED]);
  CHECK(s.entered_ns[MPISERVE_LAUNCHED] < s.entered_ns[MPISERVE_LOADING]);
  CHECK(s.entered_ns[MPISERVE_LOADING] < s.entered_ns[MPISERVE_READY]);
  CHECK(!mpiserve_service_wait_ready(session, "led", 0));
  CHECK(state_of(session, "broken") == MPISERVE_FAILED);
  EXPECT(mpiserve_service_wait_ready(session, "broken", LONG), MPISERVE_EMODEL,
         "'broken' will not be ready: replica 0 on rank 1 has failed since 20");
  EXPECT(mpiserve_service_find(session, "broken", &none), MPISERVE_EMODEL, "no weights (since 20");
  EXPECT(mpiserve_service_state_get(session, "leg", -1, &s), MPISERVE_ENOTFOUND, "'led'");
  EXPECT(mpiserve_service_state_get(session, "led", 1, &s), MPISERVE_EARG, "has 1 replicas");
  EXPECT(mpiserve_service_wait_ready(session, "leg", 0), MPISERVE_ENOTFOUND, "'led'");
  EXPECT(mpiserve_state_set(session, 0, MPISERVE_READY), MPISERVE_EARG, "inference ranks");
}

static void check_changes(mpiserve_session *session, mpiserve_service *orders) {
  order(orders, SUSPEND);
  CHECK(state_of(session, "led") == MPISERVE_SUSPENDED);
  EXPECT(mpiserve_service_wait_ready(session, "led", SHORT), MPISERVE_ETIMEOUT, "not ready within");
  order(orders, RESTART);
  CHECK(state_of(session, "led") == MPISERVE_RESTARTING);
  order(orders, RESUME);
  CHECK(state_of(session, "led") == MPISERVE_READY);
  CHECK(!mpiserve_service_wait_ready(session, "led", LONG));
  order(orders, FAIL);
  CHECK(state_of(session, "led") == MPISERVE_FAILED);
  EXPECT(mpiserve_service_wait_ready(session, "led", LONG), MPISERVE_EMODEL, "has failed since");
  order(orders, HEAL);
  CHECK(state_of(session, "led") == MPISERVE_READY);
}

static void check_busy(mpiserve_session *session, mpiserve_service *orders) {
  int32_t what = SLEEP;
  mpiserve_tensor x = tensor(&what);
  mpiserve_request request;
  CHECK(!mpiserve_submit(orders, 1, &x, 1, &x, NULL, &request));
  int state = MPISERVE_READY, done = 0;
  while (state == MPISERVE_READY && !done) {
    state = state_of(session, "orders");
    CHECK(!mpiserve_test(session, &request, &done, NULL));
  }
  CHECK(state == MPISERVE_BUSY && state_of(session, "led") == MPISERVE_READY);
  CHECK(!mpiserve_service_wait_ready(session, "orders", 0));
  if (!done) CHECK(!mpiserve_wait(session, &request, LONG, NULL));
  /* The head replies before it is ready again. */
  do order(orders, HEAL);
  while (state_of(session, "orders") == MPISERVE_BUSY && usleep(1000) == 0);
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  mpiserve_service *orders;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  int code = mpiserve_open(MPI_COMM_WORLD, role, &session);
  if (code == MPISERVE_OK) {
    if (role == MPISERVE_INFERENCE) {
      serve(session);
    } else {
      check_first(session);
      CHECK(!mpiserve_service_find(session, "orders", &orders));
      check_changes(session, orders);
      check_busy(session, orders);
    }
    CHECK(mpiserve_close(session) == MPISERVE_OK);
  } else {
    printf("open: %s\n", mpiserve_last_error());
  }
  MPI_Finalize();
  return code ? 1 : check_result();
}
