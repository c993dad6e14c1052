/* A rod that cools: one call of a pace in each time step, in place of one of the service. */
#include <mpiserve.h>
#include <stdio.h>

enum { CELLS = 200, STEPS = 12 };
static int rank;
static const double DT = 0.01, SOLVER = 0.02; /* SOLVER: seconds of work in each step */

static void check(int code) {
  if (code == MPISERVE_OK) return;
  fprintf(stderr, "%s: %s\n", mpiserve_strerror(code), mpiserve_last_error());
  MPI_Abort(MPI_COMM_WORLD, 1);
}

/* Stands for the rest of the solver, which keeps a core busy. */
static void rest_of_the_solver(void) {
  for (double until = MPI_Wtime() + SOLVER; MPI_Wtime() < until;) {
  }
}

static void run(mpiserve_session *session, mpiserve_service *cooling,
                const mpiserve_pace_options *options) {
  mpiserve_pace pace;
  mpiserve_stats stats;
  double T[CELLS], q[CELLS];
  long ages = 0, oldest = 0;
  mpiserve_tensor in = {"T", T, MPISERVE_FLOAT64, 1, {CELLS}};
  mpiserve_tensor out = {"q", q, MPISERVE_FLOAT64, 1, {CELLS}};
  for (int i = 0; i < CELLS; i++) T[i] = 1000 + i;
  check(mpiserve_pace_open(cooling, options, &pace));
  double begin = MPI_Wtime();
  for (int step = 0; step < STEPS; step++) {
    check(mpiserve_step(session)); /* for the report of MPISERVE_PROFILE */
    check(mpiserve_pace_step(cooling, &pace, 1, &in, 1, &out, MPISERVE_FOREVER, &stats));
    for (int i = 0; i < CELLS; i++) T[i] += DT * q[i];
    rest_of_the_solver();
    ages += stats.age;
    if (stats.age > oldest) oldest = stats.age;
  }
  double each = (MPI_Wtime() - begin) / STEPS;
  char what[64];
  snprintf(what, sizeof what, "rank %d: every %d, lag %d, %s", rank, (int)options->every,
           (int)options->lag, options->extrapolate ? "on a line" : "held");
  printf("%s: %.4f K, ages %ld, oldest %ld\n", what, T[CELLS - 1], ages, oldest);
  fprintf(stderr, "%s: %.1f ms a step\n", what, 1e3 * each);
  check(mpiserve_pace_close(cooling, &pace));
}

int main(int argc, char **argv) {
  const mpiserve_pace_options paces[] = {{.every = 1},
                                         {.every = 1, .lag = 1},
                                         {.every = 1, .lag = 1, .extrapolate = 1},
                                         {.every = 4, .lag = 1, .extrapolate = 1}};
  mpiserve_session *session;
  mpiserve_service *cooling;
  mpiserve_counters counters;
  MPI_Comm comm;
  MPI_Init(&argc, &argv);
  check(mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  check(mpiserve_comm(session, &comm));
  MPI_Comm_rank(comm, &rank);
  check(mpiserve_service_find(session, "cooling", &cooling));
  for (int i = 0; i < 4; i++) run(session, cooling, &paces[i]);
  check(mpiserve_counters_get(session, &counters));
  printf("rank %d: %d paced_steps, %d paced_age_sum, %d paced_age_max\n", rank,
         (int)counters.paced_steps, (int)counters.paced_age_sum, (int)counters.paced_age_max);
  check(mpiserve_close(session));
  return MPI_Finalize();
}
