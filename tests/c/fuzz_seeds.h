/* fuzz_seeds: programs of which each seed is a session and a test: PROGRAM FIRST_SEED [SEEDS
 * [SECONDS]]. No session begins after SECONDS. FUZZ_LIMIT is the number of seconds after which a
 * session is taken to hang; then each rank prints where it is. */
#ifndef FUZZ_SEEDS_H
#define FUZZ_SEEDS_H

#include <signal.h>
#include <unistd.h>

#include "fuzz.h"

enum { LIMIT_S = 60, GRACE_S = 2 };

static inline int number_from(const char *variable, int otherwise) {
  const char *text = getenv(variable);
  return text ? atoi(text) : otherwise;
}

/* As conftest.py does: see outcomes() in tests/run.py. */
static inline void report(const char *outcome, const char *what) {
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

/* Every rank says where it is; then the job ends. */
static inline void hangs(int signal) {
  printf("HANGS: seed %llu rank %d: %s\n", (unsigned long long)me.seed, me.rank, me.doing);
  fflush(stdout);
  report("failed", "seed");
  sleep(GRACE_S);
  _exit(128 + signal);
}

static inline mpiserve_session *open_session(int role) {
  mpiserve_session *session = NULL;
  doing("open");
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) {
    wrong("open: %s", mpiserve_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  return session;
}

static inline void run_seed(const char *program, uint64_t seed, void (*session)(uint64_t seed)) {
  me.seed = seed;
  me.wrong = 0;
  if (!me.rank)
    printf("seed %llu: mpiexec -n %d %s %llu\n", (unsigned long long)seed, me.ranks, program,
           (unsigned long long)seed);
  fflush(stdout);
  report("collected", "seed");
  alarm((unsigned)number_from("FUZZ_LIMIT", LIMIT_S));
  session(seed);
  alarm(0);
  report(me.wrong ? "failed" : "passed", "seed");
}

/* The first rank looks at its watch for all. */
static inline int goes_on(double end) {
  int go = MPI_Wtime() < end;
  MPI_Bcast(&go, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return go;
}

/* What main() returns. */
static inline int run_seeds(int argc, char **argv, void (*session)(uint64_t seed)) {
  int level, failed = 0;
  if (argc < 2) return fprintf(stderr, "%s FIRST_SEED [SEEDS [SECONDS]]\n", argv[0]), 2;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &me.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &me.ranks);
  me.trace = getenv("FUZZ_TRACE") != NULL;
  signal(SIGALRM, hangs);
  uint64_t first = strtoull(argv[1], NULL, 10), seeds = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  double end = MPI_Wtime() + (argc > 3 ? atof(argv[3]) : 1e9);
  for (uint64_t i = 0; i < seeds && goes_on(end); i++) {
    run_seed(argv[0], first + i, session);
    failed += me.wrong != 0;
  }
  report("collected", "the last was");
  MPI_Finalize();
  return failed != 0;
}

#endif
