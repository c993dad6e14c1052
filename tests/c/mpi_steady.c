/* ranks: 2
 *
 * In the steady state nothing is allocated and nobody sleeps: over 10,000 requests of
 * each kind, malloc and its kin, and the system calls that switch contexts, are
 * counted on both sides. Their names are taken over here, before the C library's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <mpi.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { REHEARSALS = 200, ROUNDS = 10000, ROWS = 200 };

static int counting;
static long allocations, sleeps, disturbed;

/* What else the machine does takes the core away, and the other rank then answers late. */
static void count_from_now(int on) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  disturbed += on ? -usage.ru_nivcsw : usage.ru_nivcsw;
  counting = on;
}

#ifdef __SANITIZE_ADDRESS__ /* which has these names itself */
static int skipped(void) { return 1; }
#else
static int skipped(void) { return 0; }

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

void *malloc(size_t size) {
  allocations += counting;
  return __libc_malloc(size);
}

void *calloc(size_t n, size_t size) {
  allocations += counting;
  return __libc_calloc(n, size);
}

void *realloc(void *old, size_t size) {
  allocations += counting;
  return __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  allocations += counting;
  return __libc_memalign(alignment, size);
}

int nanosleep(const struct timespec *time, struct timespec *left) {
  sleeps += counting;
  return clock_nanosleep(CLOCK_REALTIME, 0, time, left);
}

/* The library's futex comes this way. */
long syscall(long number, ...) {
  static long (*real)(long, ...);
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "syscall");
  long a[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  sleeps += counting;
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
#endif

static void repeat(mpiserve_service *service, int rounds, mpiserve_tensor *in,
                   mpiserve_tensor *out) {
  for (int i = 0; i < rounds; i++) {
    mpiserve_stats stats;
    CHECK(!mpiserve_infer(service, 1, in, 1, out, 60, &stats));
  }
}

/* Several in flight, in turn. */
static void pipeline(mpiserve_session *session, mpiserve_service *service, int rounds,
                     mpiserve_tensor *in, mpiserve_tensor *out) {
  mpiserve_request requests[4] = {{0}};
  for (int i = 0; i < rounds + 4; i++) {
    mpiserve_request *request = &requests[i % 4];
    if (request->id) CHECK(!mpiserve_wait(session, request, 60, NULL));
    if (i < rounds) CHECK(!mpiserve_submit(service, 1, in, 1, out, NULL, request));
  }
}

static void count(mpiserve_session *session, mpiserve_service *service, int64_t rows,
                  int in_place) {
  static double from[ROWS], to[ROWS];
  mpiserve_buffer buffer;
  CHECK(!mpiserve_buffer_take(service, rows, &buffer));
  mpiserve_tensor in = {NULL, in_place ? buffer.inputs[0] : from, MPISERVE_FLOAT64, 1, {rows}};
  mpiserve_tensor out = {NULL, in_place ? buffer.outputs[0] : to, MPISERVE_FLOAT64, 1, {rows}};
  repeat(service, REHEARSALS, &in, &out);
  pipeline(session, service, REHEARSALS, &in, &out);
  count_from_now(1);
  repeat(service, ROUNDS, &in, &out);
  pipeline(session, service, ROUNDS, &in, &out);
  count_from_now(0);
  CHECK(!mpiserve_buffer_give(service, &buffer));
}

static void simulate(void) {
  mpiserve_session *session;
  mpiserve_service *service;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  CHECK(!mpiserve_service_find(session, "echo", &service));
  count(session, service, 1, 0);
  count(session, service, ROWS, 0);
  count(session, service, ROWS, 1);
  CHECK(!mpiserve_close(session));
}

/* The head has seen all kinds before it counts: the first hundred requests of each. */
static void serve(void) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.name = "echo",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = ROWS,
                            .overwrites = 1};
  mpiserve_session *session;
  mpiserve_counters counters;
  mpiserve_engine engine;
  mpiserve_batch batch;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_INFERENCE, &session));
  CHECK(!mpiserve_publish(session, 1, &d));
  CHECK(!mpiserve_engine_load(NULL, NULL, &d, &engine));
  CHECK(!mpiserve_engine_set(session, 0, &engine));
  int code = MPISERVE_ETIMEOUT;
  while (code == MPISERVE_ETIMEOUT && !mpiserve_counters_get(session, &counters) &&
         counters.requests < REHEARSALS / 2)
    code = mpiserve_batch_next(session, 0, &batch);
  CHECK(code == MPISERVE_ETIMEOUT);
  count_from_now(1);
  code = mpiserve_batch_next(session, MPISERVE_FOREVER, &batch);
  count_from_now(0);
  CHECK(code == MPISERVE_ECLOSED);
  CHECK(!mpiserve_close(session));
  mpiserve_engine_close(&engine);
}

int main(int argc, char **argv) {
  int rank, level;
  const char *transport = getenv("MPISERVE_TRANSPORT");
  if (skipped()) return 77;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0)
    simulate();
  else
    serve();
  printf("rank %d: %ld allocations, %ld sleeps and wakes, %ld times disturbed\n", rank, allocations,
         sleeps, disturbed);
  /* Over rma MPI allocates as it likes, below Put and Isend. */
  if (transport && !strcmp(transport, "shared")) CHECK(allocations == 0);
  /* Nobody sleeps while the other one answers, unless a core is shared: then now and then. */
  if (sysconf(_SC_NPROCESSORS_ONLN) > 1) CHECK(sleeps < ROUNDS / 10 + disturbed);
  MPI_Finalize();
  return check_result();
}
