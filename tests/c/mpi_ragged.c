/* ranks: 4
 *
 * A ragged service: three clients send graphs of any size, with no nodes and no edges too, some at
 * a time, which share batches. The head answers at once, in parts, and late. */
#include <mpi.h>
#include <stdlib.h>

#include "check.h"
#include "mpiserve.h"

enum { NODES = 60, EDGES = 150, BATCH = 8, AT_A_TIME = 4, STEPS = 200, MAX_HELD = 64 };

typedef int64_t shapes[MPISERVE_MAX_DIMS];

static mpiserve_description graphs(void) {
  mpiserve_spec nodes = {.name = "nodes",
                         .dtype = MPISERVE_FLOAT64,
                         .ndim = 2,
                         .shape = {-1, 2},
                         .max_shape = {NODES}};
  mpiserve_spec edges = {
      .name = "edges", .dtype = MPISERVE_INT32, .ndim = 2, .shape = {-1, 2}, .max_shape = {EDGES}};
  mpiserve_spec factor = {.name = "factor", .dtype = MPISERVE_FLOAT64};
  return (mpiserve_description){.name = "graphs",
                                .n_inputs = 3,
                                .n_outputs = 2,
                                .inputs = {nodes, edges, factor},
                                .outputs = {nodes, factor},
                                .max_batch_rows = BATCH,
                                .max_delay_ns = 2000000,
                                .rows = MPISERVE_RAGGED,
                                .allow_empty = 1};
}

/* ---- the graphs ---------------------------------------------------------------------- */

typedef struct graph {
  int64_t n, m;
  double x[2 * NODES], factor;
  int32_t edges[EDGES][2];
} graph;

/* Each node and what its edges bring, and a number for the graph. */
static void compute(int64_t n, int64_t m, const double *x, const int32_t (*edges)[2], double factor,
                    double *y, double *sum) {
  for (int64_t i = 0; i < 2 * n; i++) y[i] = factor * x[i];
  for (int64_t e = 0; e < m; e++)
    for (int k = 0; k < 2; k++) y[2 * edges[e][1] + k] += x[2 * edges[e][0] + k];
  *sum = (double)(1000 * n + m);
  for (int64_t i = 0; i < 2 * n; i++) *sum += y[i];
}

static void make(graph *g, int rank, int step, int k) {
  g->n = (rank * 31 + step * 7 + k * 13) % (NODES + 1);
  g->m = g->n ? (step * 17 + k) % (EDGES + 1) : 0;
  g->factor = rank + step / 8.0;
  for (int64_t i = 0; i < 2 * g->n; i++) g->x[i] = rank * 1000 + step + (double)i / 4;
  for (int64_t e = 0; e < g->m; e++) {
    g->edges[e][0] = (int32_t)(e * 5 % g->n);
    g->edges[e][1] = (int32_t)(e % g->n);
  }
}

/* ---- the inference rank ---------------------------------------------------------------- */

typedef struct held {
  mpiserve_ticket ticket;
  int64_t n;
  double y[2 * NODES], sum;
} held;

static held waiting[MAX_HELD];
static int n_waiting, n_shared;

static void answer_row(const mpiserve_batch *batch, int64_t row, const shapes *given, double *y,
                       double *sum) {
  const double *x = (const double *)batch->inputs[0] + row * 2 * NODES;
  const int32_t (*edges)[2] = (const int32_t (*)[2])batch->inputs[1] + row * EDGES;
  CHECK(given[0][0] >= 0 && given[0][0] <= NODES && given[0][1] == 2);
  CHECK(given[1][0] >= 0 && given[1][0] <= EDGES && given[1][1] == 2);
  compute(given[0][0], given[1][0], x, edges, ((const double *)batch->inputs[2])[row], y, sum);
}

static void hold(mpiserve_session *session, const mpiserve_batch *batch, shapes given[][3]) {
  mpiserve_ticket tickets[BATCH];
  held *first = &waiting[n_waiting];
  for (int64_t r = 0; r < batch->rows; r++) {
    first[r].n = given[r][0][0];
    answer_row(batch, r, given[r], first[r].y, &first[r].sum);
  }
  CHECK(!mpiserve_batch_hold(session, tickets));
  for (int r = 0; r < batch->requests; r++) {
    CHECK(tickets[r].row == r && tickets[r].rows == 1);
    waiting[n_waiting++].ticket = tickets[r];
  }
}

static void answer_late(mpiserve_session *session) {
  while (n_waiting) {
    held *one = &waiting[--n_waiting];
    const shapes made[2] = {{one->n, 2}};
    const void *outputs[] = {one->y, &one->sum};
    CHECK(!mpiserve_result_shapes_set(session, 0, 1, made[0]));
    CHECK(!mpiserve_ticket_reply(session, &one->ticket, outputs));
  }
}

static void answer_now(mpiserve_session *session, const mpiserve_batch *batch, shapes given[][3],
                       int in_parts) {
  shapes made[BATCH][2] = {{{0}}};
  const void *const *outputs = (const void *const *)batch->outputs;
  for (int64_t r = 0; r < batch->rows; r++) {
    double *y = (double *)batch->outputs[0] + r * 2 * NODES;
    answer_row(batch, r, given[r], y, (double *)batch->outputs[1] + r);
    made[r][0][0] = given[r][0][0];
    made[r][0][1] = 2;
  }
  CHECK(!mpiserve_result_shapes_set(session, 0, batch->rows, made[0][0]));
  made[0][0][0] = 0; /* changes nothing, not even of the first rows: */
  made[batch->rows - 1][0][0] = NODES + 1;
  CHECK(mpiserve_result_shapes_set(session, 0, batch->rows, made[0][0]) == MPISERVE_ESHAPE);
  if (in_parts) CHECK(!mpiserve_batch_reply_rows(session, batch->rows / 2, outputs));
  CHECK(!mpiserve_batch_reply(session, outputs));
}

static void answer(mpiserve_session *session, const mpiserve_batch *batch, int turn) {
  static shapes given[BATCH][3];
  CHECK(batch->rows == batch->requests && batch->rows <= BATCH);
  CHECK(!mpiserve_batch_shapes_get(session, given[0][0]));
  n_shared += batch->requests > 1;
  if (turn % 5 == 4 && n_waiting + batch->requests <= MAX_HELD)
    hold(session, batch, given);
  else
    answer_now(session, batch, given, turn % 3 == 2);
  if (turn % 5 != 4 || turn % 2) answer_late(session);
}

static void serve(void) {
  mpiserve_session *session;
  mpiserve_batch batch;
  mpiserve_counters counters;
  mpiserve_description all = graphs();
  int64_t none[2 * (BATCH + 1) * MPISERVE_MAX_DIMS] = {0};
  int code = MPISERVE_OK;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_INFERENCE, &session));
  CHECK(!mpiserve_publish(session, 1, &all));
  CHECK(mpiserve_rows_set(session, 0, MPISERVE_TOGETHER) == MPISERVE_EARG);
  CHECK(mpiserve_result_shapes_set(session, 0, BATCH + 1, none) == MPISERVE_EARG);
  CHECK(mpiserve_result_shapes_set(session, 0, 0, none) == MPISERVE_EARG);
  for (int turn = 0; code != MPISERVE_ECLOSED && turn < 100000; turn++) {
    code = mpiserve_batch_next(session, n_waiting ? 0 : 10, &batch);
    if (code == MPISERVE_OK) answer(session, &batch, turn);
    if (code == MPISERVE_ETIMEOUT) answer_late(session);
  }
  CHECK(code == MPISERVE_ECLOSED);
  CHECK(!mpiserve_counters_get(session, &counters));
  CHECK(counters.requests == 3 * STEPS * AT_A_TIME && !counters.errors);
  CHECK(n_shared && counters.batches < counters.requests);
  CHECK(!mpiserve_close(session));
}

/* ---- simulation ranks -------------------------------------------------------------------- */

static mpiserve_request submit(mpiserve_service *service, graph *g, double *y, double *sum,
                               shapes *found) {
  mpiserve_tensor in[] = {{"edges", g->m ? g->edges : NULL, MPISERVE_INT32, 2, {g->m, 2}},
                          {"factor", &g->factor, MPISERVE_FLOAT64, 0, {0}},
                          {"nodes", g->n ? g->x : NULL, MPISERVE_FLOAT64, 2, {g->n, 2}}};
  mpiserve_tensor out[] = {{NULL, y, MPISERVE_FLOAT64, 2, {found ? NODES : g->n, 2}},
                           {NULL, sum, MPISERVE_FLOAT64, 0, {0}}};
  mpiserve_options options = {.result_shapes = found ? found[0] : NULL};
  mpiserve_request request = {0};
  CHECK(!mpiserve_submit(service, 3, in, 2, out, &options, &request));
  return request;
}

static void test_step(mpiserve_session *session, mpiserve_service *service, int rank, int step) {
  static graph g[AT_A_TIME];
  static double y[AT_A_TIME][2 * NODES], sum[AT_A_TIME];
  double expected[2 * NODES], total;
  mpiserve_request requests[AT_A_TIME];
  shapes found[AT_A_TIME][2];
  mpiserve_stats stats;
  for (int k = 0; k < AT_A_TIME; k++) {
    make(&g[k], rank, step, k);
    requests[k] = submit(service, &g[k], y[k], &sum[k], k % 2 ? found[k] : NULL);
  }
  for (int k = 0; k < AT_A_TIME; k++) {
    CHECK(!mpiserve_wait(session, &requests[k], 20, &stats));
    CHECK(stats.rows == 1 && stats.batch_requests == stats.batch_rows);
    if (k % 2) CHECK(found[k][0][0] == g[k].n && found[k][0][1] == 2);
    compute(g[k].n, g[k].m, g[k].x, g[k].edges, g[k].factor, expected, &total);
    CHECK(!memcmp(y[k], expected, (size_t)(2 * g[k].n) * sizeof *expected) && sum[k] == total);
  }
}

static void test_wrong_shapes(mpiserve_service *service) {
  double x[2], y[2], sum, factor = 1;
  mpiserve_tensor in[] = {{"nodes", x, MPISERVE_FLOAT64, 2, {NODES + 1, 2}},
                          {"edges", NULL, MPISERVE_INT32, 2, {0, 2}},
                          {"factor", &factor, MPISERVE_FLOAT64, 0, {0}}};
  mpiserve_tensor out[] = {{NULL, y, MPISERVE_FLOAT64, 2, {1, 2}},
                           {NULL, &sum, MPISERVE_FLOAT64, 0, {0}}};
  mpiserve_buffer buffer;
  CHECK(mpiserve_infer(service, 3, in, 2, out, 10, NULL) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "'nodes': shape is [61, 2], the signature says [up to 60, 2]");
  CHECK(mpiserve_buffer_take(service, 2, &buffer) == MPISERVE_EROWS); /* a request is one row */
}

static void simulate(int rank) {
  mpiserve_session *session;
  mpiserve_service *service;
  mpiserve_description d;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  CHECK(!mpiserve_service_find(session, "graphs", &service));
  CHECK(!mpiserve_service_describe(service, &d, NULL, NULL, NULL));
  CHECK(d.rows == MPISERVE_RAGGED && d.max_batch_rows == BATCH);
  for (int step = 0; step < STEPS; step++) test_step(session, service, rank, step);
  test_wrong_shapes(service);
  CHECK(!mpiserve_close(session));
}

int main(int argc, char **argv) {
  int rank, size;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank == size - 1)
    serve();
  else
    simulate(rank);
  MPI_Finalize();
  return check_result();
}
