/* ranks: 4
 *
 * A head whose batches run in engines, of a library that it loads: the caller is asked for nothing
 * but the service that has none, failures, changes and time-outs. */
#include <mpi.h>

#include "check.h"
#include "mpiserve.h"

enum { TOY, EACH, PLAIN, SERVICES }; /* as batches; request by request; without an engine */
enum { CLIENTS = 3, REQUESTS = 300, MOST = 16, COLUMNS = 3 };

static const char *const NAMES[SERVICES] = {"toy", "each", "plain"};
static const double LIMIT = 60, SLICE = 0.02;
static char library[4096];

#define EXPECT(call, code, text) \
  do { \
    CHECK((call) == (code)); \
    CHECK_TEXT(mpiserve_last_error(), text); \
  } while (0)

/* ---- the head ------------------------------------------------------------------------- */

typedef struct head {
  mpiserve_session *session;
  mpiserve_description d[SERVICES];
  mpiserve_engine engines[SERVICES];
  int failures, changes, plain; /* for which the caller was asked */
} head;

static void describe(mpiserve_description *d, const char *name) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, COLUMNS}};
  *d = (mpiserve_description){.n_inputs = 1, .n_outputs = 1, .max_batch_rows = 2 * MOST};
  snprintf(d->name, sizeof d->name, "%s", name);
  d->inputs[0] = d->outputs[0] = spec;
}

/* To an engine the uncertainty is an output as any other. */
static void check_uncertain(const mpiserve_description *published) {
  mpiserve_engine engine;
  mpiserve_description d = *published;
  double x[COLUMNS] = {1}, y[COLUMNS] = {0};
  float u = 0;
  d.uncertain = 1;
  CHECK(!mpiserve_engine_load(library, "2", &d, &engine));
  const void *inputs[] = {x};
  void *outputs[] = {y, &u};
  CHECK(!engine.run(engine.state, 1, inputs, outputs, NULL, 0));
  CHECK(y[0] == 2 && u == COLUMNS / 2.0F);
  mpiserve_engine_close(&engine);
}

static void load(head *h) {
  mpiserve_engine engine = {.run = NULL};
  mpiserve_description other = h->d[TOY];
  other.outputs[0].shape[1] = COLUMNS + 1;
  EXPECT(mpiserve_engine_load("./no_such.so", "2", h->d, &engine), MPISERVE_EMODEL, "no_such.so");
  EXPECT(mpiserve_engine_load("libm.so.6", "2", h->d, &engine), MPISERVE_EMODEL,
         MPISERVE_ENGINE_ENTRY);
  EXPECT(mpiserve_engine_load(library, "no", h->d, &engine), MPISERVE_EMODEL, "'no' is no factor");
  EXPECT(mpiserve_engine_load(NULL, NULL, &other, &engine), MPISERVE_ECONFIG, "echo needs");
  CHECK(!engine.run);
  check_uncertain(h->d);
  for (int i = TOY; i <= EACH; i++)
    CHECK(!mpiserve_engine_load(library, "2", h->d, &h->engines[i]));
  h->engines[TOY].chunk_rows = 5;
  h->engines[EACH].by_request = 1;
  for (int i = TOY; i <= EACH; i++) CHECK(!mpiserve_engine_set(h->session, i, &h->engines[i]));
}

/* The next version is another factor. */
static void change(head *h) {
  mpiserve_change_request request;
  mpiserve_engine old = h->engines[TOY];
  CHECK(!mpiserve_change_get(h->session, &request));
  if (request.what == MPISERVE_SWAP) {
    CHECK(!mpiserve_engine_load(library, "3", h->d, &h->engines[TOY]));
    CHECK(!mpiserve_engine_set(h->session, TOY, &h->engines[TOY]));
    mpiserve_engine_close(&old);
  }
  CHECK(!mpiserve_change_reply(h->session, TOY, MPISERVE_OK, NULL));
  h->changes++;
}

static void answer(head *h, const mpiserve_batch *batch) {
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  for (int64_t i = 0; i < COLUMNS * batch->rows; i++) y[i] = 2 * x[i];
  CHECK(!mpiserve_batch_reply(h->session, (const void *const *)batch->outputs));
}

static int step(head *h) {
  mpiserve_batch batch;
  int code = mpiserve_batch_next(h->session, SLICE, &batch);
  if (code == MPISERVE_EMODEL) {
    CHECK_TEXT(mpiserve_last_error(), "-1 is negative");
    CHECK(batch.service == TOY && batch.rows == 2);
    EXPECT(mpiserve_engine_set(h->session, TOY, NULL), MPISERVE_ESTATE, "not been answered");
    CHECK(!mpiserve_batch_fail(h->session, MPISERVE_EMODEL, "the caller has failed it"));
    h->failures++;
  } else if (code == MPISERVE_ECHANGE) {
    change(h);
  } else if (!code) {
    CHECK(batch.service == PLAIN);
    answer(h, &batch);
    h->plain++;
  } else if (code != MPISERVE_ETIMEOUT) {
    return code;
  }
  return MPISERVE_OK;
}

static void serve(mpiserve_session *session) {
  head h = {.session = session};
  mpiserve_counters count;
  int code = MPISERVE_OK;
  for (int i = 0; i < SERVICES; i++) describe(&h.d[i], NAMES[i]);
  CHECK(!mpiserve_publish(session, SERVICES, h.d));
  load(&h);
  double begin = MPI_Wtime();
  while (!code) code = step(&h);
  double slices = (MPI_Wtime() - begin) / SLICE;
  CHECK(code == MPISERVE_ECLOSED);
  CHECK(!mpiserve_counters_get(session, &count));
  CHECK(h.failures == 1 && h.changes == 2 && h.plain == 1);
  CHECK(count.batch_calls <= slices + 1 + h.failures + h.changes + h.plain);
  CHECK(count.engine_batches + h.failures + h.plain == count.batches);
  CHECK(count.engine_batches >= REQUESTS && count.errors == 2);
  CHECK(!mpiserve_close(session));
  for (int i = 0; i < SERVICES; i++) mpiserve_engine_close(&h.engines[i]);
}

/* ---- the clients ---------------------------------------------------------------------- */

static int infer(mpiserve_service *service, double *x, double *y, int64_t rows,
                 mpiserve_stats *stats) {
  mpiserve_tensor in = {.data = x, .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {rows, COLUMNS}};
  mpiserve_tensor out = in;
  out.data = y;
  return mpiserve_infer(service, 1, &in, 1, &out, LIMIT, stats);
}

static void check_answer(mpiserve_service *service, int64_t rows, double value, double factor) {
  double x[MOST * COLUMNS], y[MOST * COLUMNS] = {0};
  mpiserve_stats stats;
  for (int i = 0; i < rows * COLUMNS; i++) x[i] = value + i;
  CHECK(!infer(service, x, y, rows, &stats));
  CHECK(stats.batch_rows >= rows && stats.queue_ns >= 0 && stats.compute_ns >= 0);
  for (int i = 0; i < rows * COLUMNS; i++) CHECK(y[i] == factor * x[i]);
}

/* A request that fails ends with the text of who failed it, and the next one does not. */
static void test_failures(mpiserve_service **services) {
  double x[2 * COLUMNS] = {1, 2, 3, 4, 5, -1}, y[2 * COLUMNS];
  EXPECT(infer(services[TOY], x, y, 2, NULL), MPISERVE_EMODEL, "the caller has failed it");
  EXPECT(infer(services[EACH], x, y, 2, NULL), MPISERVE_EMODEL, "-1 is negative");
  check_answer(services[TOY], 2, 1, 2);
  check_answer(services[EACH], 2, 1, 2);
}

static void simulate(mpiserve_session *session, MPI_Comm clients, int rank) {
  mpiserve_service *services[SERVICES];
  for (int i = 0; i < SERVICES; i++) CHECK(!mpiserve_service_find(session, NAMES[i], &services[i]));
  for (int i = 0; i < REQUESTS; i++)
    check_answer(services[i % 2 ? TOY : EACH], 1 + (i * 7 + rank) % MOST, 100 * rank + i, 2);
  MPI_Barrier(clients);
  if (rank == 0) {
    test_failures(services);
    check_answer(services[PLAIN], 3, 1, 2);
    CHECK(!mpiserve_reload(session, "toy", "next", LIMIT));
  }
  MPI_Barrier(clients);
  check_answer(services[TOY], MOST, rank, 3);
  check_answer(services[EACH], MOST, rank, 2);
  CHECK(!mpiserve_close(session));
}

int main(int argc, char **argv) {
  int rank, level;
  MPI_Comm comm;
  mpiserve_session *session;
  const char *slash = strrchr(argv[0], '/');
  int folder = slash ? (int)(slash - argv[0]) : 0;
  snprintf(library, sizeof library, "%.*s/engine_toy.so", folder, argv[0]);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  CHECK(!mpiserve_open(MPI_COMM_WORLD, rank < CLIENTS ? MPISERVE_SIMULATION : MPISERVE_INFERENCE,
                       &session));
  CHECK(!mpiserve_comm(session, &comm));
  if (rank < CLIENTS)
    simulate(session, comm, rank);
  else
    serve(session);
  MPI_Finalize();
  return check_result();
}
