/* What a solver in C that calls PhyDLL becomes with mpiserve: fields to the model, fields back. */
#include <mpiserve.h>
#include <stdio.h>

enum { STEPS = 6, MOST = 64 };

static double u[MOST], v[MOST], source_u[MOST], source_v[MOST];
static int rank, nodes;

static void check(int code) {
  if (code == MPISERVE_OK) return;
  fprintf(stderr, "%s: %s\n", mpiserve_strerror(code), mpiserve_last_error());
  MPI_Abort(MPI_COMM_WORLD, 1);
}

static void start(void) {
  for (int i = 0; i < nodes; i++) {
    u[i] = (rank + i + 1) / 16.0;
    v[i] = 1 - u[i];
  }
}

static void advance(void) {
  for (int i = 0; i < nodes; i++) {
    u[i] += 0.125 * source_u[i];
    v[i] += 0.125 * source_v[i];
  }
}

/* With all digits, so that answers can be compared; in one piece, since ranks share the output. */
static void show(const char *name) {
  char line[64 + 2 * MOST * 32];
  int at = snprintf(line, sizeof line, "%s %d", name, rank);
  for (int i = 0; i < nodes; i++) at += snprintf(line + at, sizeof line - at, " %.16e", u[i]);
  for (int i = 0; i < nodes; i++) at += snprintf(line + at, sizeof line - at, " %.16e", v[i]);
  puts(line);
  fflush(stdout);
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *closure;
  mpiserve_request request;
  mpiserve_pace pace;
  mpiserve_pace_options every_second = {.every = 2};
  MPI_Comm comm;

  MPI_Init(&argc, &argv);
  check(mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  check(mpiserve_comm(session, &comm));
  MPI_Comm_rank(comm, &rank);
  check(mpiserve_service_find(session, "closure", &closure));
  nodes = 7 + rank; /* each rank has its own part of the mesh */
  mpiserve_tensor fields[] = {{"u", u, MPISERVE_FLOAT64, 1, {nodes}},
                              {"v", v, MPISERVE_FLOAT64, 1, {nodes}}};
  mpiserve_tensor sources[] = {{"source_u", source_u, MPISERVE_FLOAT64, 1, {nodes}},
                               {"source_v", source_v, MPISERVE_FLOAT64, 1, {nodes}}};

  /* In each step: send the fields, and wait for those of the model. */
  start();
  for (int step = 0; step < STEPS; step++) {
    check(mpiserve_infer(closure, 2, fields, 2, sources, MPISERVE_FOREVER, NULL));
    advance();
  }
  show("blocking");

  /* Compute meanwhile: isend, irecv and their waits. */
  start();
  double advected = 0;
  for (int step = 0; step < STEPS; step++) {
    check(mpiserve_submit(closure, 2, fields, 2, sources, NULL, &request));
    for (int i = 0; i < nodes; i++) advected += u[i] / nodes;
    check(mpiserve_wait(session, &request, 60, NULL));
    advance();
  }
  show("overlapped");

  /* Every second step: between, the answer of the step before. */
  start();
  check(mpiserve_pace_open(closure, &every_second, &pace));
  for (int step = 0; step < STEPS; step++) {
    check(mpiserve_pace_step(closure, &pace, 2, fields, 2, sources, MPISERVE_FOREVER, NULL));
    advance();
  }
  check(mpiserve_pace_close(closure, &pace));
  show("second");
  check(mpiserve_close(session));
  return MPI_Finalize();
}
