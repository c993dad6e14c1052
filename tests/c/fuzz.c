/* A random program over mpiserve.h: fuzz FIRST_SEED [SEEDS [SECONDS]]
 *
 * Each seed is a session of its own: its services, what its ranks are and all that they do
 * follow from the seed and the number of ranks. Only the time at which things happen does not,
 * so that a seed may have to be run some times until it fails again. No session begins after
 * SECONDS. FUZZ_TRACE=1 prints each step, FUZZ_LIMIT is the number of seconds after which a
 * session is taken to hang, FUZZ_OPERATIONS that of operations of each client. */
#define _GNU_SOURCE
#include <signal.h>
#include <unistd.h>

#include "fuzz_client.h"
#include "fuzz_head.h"

enum { LIMIT_S = 60, GRACE_S = 2 };

static int number_from(const char *variable, int otherwise) {
  const char *text = getenv(variable);
  return text ? atoi(text) : otherwise;
}

/* ---- what tests/run.py reads ------------------------------------------------------------ */

/* As conftest.py does: see outcomes() in tests/run.py. */
static void report(const char *outcome, const char *what) {
  const char *folder = getenv("MPISERVE_TEST_DIR");
  char path[1024];
  if (!folder) return;
  snprintf(path, sizeof path, "%s/report.%d", folder, me.rank);
  FILE *file = fopen(path, "a");
  if (!file) return;
  fprintf(file, "{\"test\": \"%s %llu\", \"outcome\": \"%s\"}\n", what, (unsigned long long)me.seed,
          outcome);
  fclose(file);
}

/* ---- the watchdog ----------------------------------------------------------------------- */

/* Every rank says where it is; then the job ends. */
static void hangs(int signal) {
  printf("HANGS: seed %llu rank %d: %s\n", (unsigned long long)me.seed, me.rank, me.doing);
  fflush(stdout);
  report("failed", "seed");
  sleep(GRACE_S);
  _exit(128 + signal);
}

/* ---- sessions --------------------------------------------------------------------------- */

static void run(const char *program, uint64_t seed) {
  me.seed = seed;
  me.wrong = 0;
  world w = make_world(seed, me.ranks);
  mpiserve_session *session = NULL;
  w.operations = number_from("FUZZ_OPERATIONS", w.operations);
  if (!me.rank)
    printf("seed %llu: mpiexec -n %d %s %llu\n", (unsigned long long)seed, me.ranks, program,
           (unsigned long long)seed);
  fflush(stdout);
  report("collected", "seed");
  alarm((unsigned)number_from("FUZZ_LIMIT", LIMIT_S));
  doing("open");
  if (mpiserve_open(MPI_COMM_WORLD, w.roles[me.rank], &session)) {
    wrong("open: %s", mpiserve_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  (w.roles[me.rank] == MPISERVE_SIMULATION ? simulate : serve)(&w, session);
  alarm(0);
  report(me.wrong ? "failed" : "passed", "seed");
}

/* The first rank looks at its watch for all. */
static int goes_on(double end) {
  int go = MPI_Wtime() < end;
  MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return go;
}

int main(int argc, char **argv) {
  int level, failed = 0;
  if (argc < 2) return fprintf(stderr, "fuzz FIRST_SEED [SEEDS [SECONDS]]\n"), 2;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &me.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &me.ranks);
  me.trace = getenv("FUZZ_TRACE") != NULL;
  signal(SIGALRM, hangs);
  uint64_t first = strtoull(argv[1], NULL, 10), seeds = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  double end = MPI_Wtime() + (argc > 3 ? atof(argv[3]) : 1e9);
  for (uint64_t i = 0; i < seeds && goes_on(end); i++) {
    run(argv[0], first + i);
    failed += me.wrong != 0;
  }
  report("collected", "the last was");
  MPI_Finalize();
  return failed != 0;
}
