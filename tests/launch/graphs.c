/* Graphs of any size, two at a time: in batches with those of other ranks, and each alone. */
#include <math.h>
#include <mpiserve.h>
#include <stdio.h>
#include <string.h>

enum { NODES = 50, EDGES = 120, WIDTH = 4, STEPS = 30, AT_A_TIME = 2 };

typedef struct graph {
  int64_t n, m;
  float x[NODES][WIDTH], scale, y[NODES][WIDTH], total[WIDTH];
  int32_t edges[EDGES][2];
} graph;

static int failures, shared;

static void check(int right, const char *what) {
  if (!right) printf("wrong: %s\n", what);
  failures += !right;
}

static void make(graph *g, int rank, int step, int k) {
  g->n = (17 * rank + 5 * step + 29 * k) % (NODES + 1);
  g->m = g->n ? (11 * step + 7 * rank + k) % (EDGES + 1) : 0;
  g->scale = 1.0F / (float)(1 + step);
  for (int i = 0; i < g->n; i++)
    for (int j = 0; j < WIDTH; j++) g->x[i][j] = sinf((float)(rank + step + WIDTH * i + j));
  for (int e = 0; e < g->m; e++) {
    g->edges[e][0] = (int32_t)(7 * e % g->n);
    g->edges[e][1] = (int32_t)((e + step) % g->n);
  }
}

static int submit(mpiserve_service *service, graph *g, mpiserve_request *request) {
  mpiserve_tensor in[] = {{"x", g->x, MPISERVE_FLOAT32, 2, {g->n, WIDTH}},
                          {"edges", g->edges, MPISERVE_INT32, 2, {g->m, 2}},
                          {"scale", &g->scale, MPISERVE_FLOAT32, 0, {0}}};
  mpiserve_tensor out[] = {{"y", g->y, MPISERVE_FLOAT32, 2, {g->n, WIDTH}},
                           {"total", g->total, MPISERVE_FLOAT32, 1, {WIDTH}}};
  return mpiserve_submit(service, 3, in, 2, out, NULL, request);
}

static void compare(const graph *g, const graph *alone) {
  int close = 1;
  for (int i = 0; i < g->n; i++)
    for (int j = 0; j < WIDTH; j++) close &= fabsf(g->y[i][j] - alone->y[i][j]) <= 1e-6F;
  for (int j = 0; j < WIDTH; j++)
    close &= fabsf(g->total[j] - alone->total[j]) <= 1e-6F * (float)(1 + g->n);
  check(close, "it is answered in another way than alone");
}

static void ask(mpiserve_session *session, mpiserve_service *network, mpiserve_service *alone,
                int rank, int step) {
  static graph g[AT_A_TIME], same;
  mpiserve_request requests[AT_A_TIME], other;
  mpiserve_stats stats;
  for (int k = 0; k < AT_A_TIME; k++) {
    make(&g[k], rank, step, k);
    check(!submit(network, &g[k], &requests[k]), mpiserve_last_error());
  }
  for (int k = 0; k < AT_A_TIME; k++) {
    same = g[k];
    check(!mpiserve_wait(session, &requests[k], 60, &stats), mpiserve_last_error());
    shared += stats.batch_requests > 1;
    check(!submit(alone, &same, &other), mpiserve_last_error());
    check(!mpiserve_wait(session, &other, 60, NULL), mpiserve_last_error());
    compare(&g[k], &same);
  }
}

/* One rank asks for a node that its graph does not have, and the others may be in its batch. */
static void ask_wrongly(mpiserve_session *session, mpiserve_service *network, int rank) {
  static graph g;
  mpiserve_request request;
  make(&g, 0, 0, 0);
  g.n = 7, g.m = 3;
  memset(g.x, 0, sizeof g.x);
  memset(g.edges, 0, sizeof g.edges);
  if (!rank) g.edges[2][1] = 7;
  check(!submit(network, &g, &request), "submit");
  int code = mpiserve_wait(session, &request, 60, NULL);
  check(code == (rank ? MPISERVE_OK : MPISERVE_EARG), "the code of the request");
  if (code) printf("%s\n", mpiserve_last_error());
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *network, *alone;
  MPI_Comm comm;
  int rank;
  MPI_Init(&argc, &argv);
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session)) return 1;
  check(!mpiserve_comm(session, &comm), "comm");
  MPI_Comm_rank(comm, &rank);
  check(!mpiserve_service_find(session, "network", &network), "find network");
  check(!mpiserve_service_find(session, "alone", &alone), "find alone");
  for (int step = 0; step < STEPS; step++) ask(session, network, alone, rank, step);
  check(shared > 0, "no batch has several graphs");
  ask_wrongly(session, network, rank);
  MPI_Allreduce(MPI_IN_PLACE, &failures, 1, MPI_INT, MPI_SUM, comm);
  check(!mpiserve_close(session), "close");
  MPI_Finalize();
  if (!failures && !rank) printf("right\n");
  return failures > 0;
}
