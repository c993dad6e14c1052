/* ranks: 3
 *
 * A head stops while the copies of records that wait for it fill their room. Another head gets what
 * is recorded for it all the same, and who goes on to record for the first one is told.
 */
#define _GNU_SOURCE
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/ring.h"
#include "check.h"
#include "mpiserve.h"

enum { ROWS = 144, ROW = 1 << 15, RING = 4 << 20, STOPPED = 1, OTHER = 2 }; /* of 256 KiB */
static const double LONG = 60;
static const char *const NAMES[] = {NULL, "stopped", "other"};
static mpiserve_session *session;
static pid_t pids[3];

/* ---- the heads --------------------------------------------------------------------------- */

static void serve(int rank, void *memory) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, ROW}};
  mpiserve_description d = {.n_inputs = 1, .n_outputs = 1, .max_batch_rows = ROWS};
  mpiserve_capture capture = {.memory = memory, .bytes = RING, .reader = -1, .share = 1};
  mpiserve_batch batch;
  d.inputs[0] = d.outputs[0] = spec;
  strcpy(d.name, NAMES[rank]);
  CHECK(!mpiserve_publish(session, 1, &d));
  CHECK(!mpiserve_capture_set(session, 0, &capture));
  CHECK(mpiserve_batch_next(session, LONG, &batch) == MPISERVE_ECLOSED);
}

/* ---- the client -------------------------------------------------------------------------- */

static double *tensors;

static int record(mpiserve_service *service, int64_t rows) {
  mpiserve_tensor x = {NULL, tensors, MPISERVE_FLOAT64, 2, {rows, ROW}};
  int kept = 7, code = mpiserve_record(service, 1, &x, 1, &x, &kept);
  CHECK(kept == !code);
  return code;
}

/* The first one asks for rows, in vain; the second one finds its copies in the way. A record that
 * was copied may have been told as lost meanwhile: to one call, which is not the last. */
static int fill(mpiserve_service *service) {
  CHECK(!record(service, ROWS));
  int code = record(service, ROWS);
  while (!code) code = record(service, ROWS);
  return code;
}

static void go_on(mpiserve_service *service) {
  double end = MPI_Wtime() + LONG;
  kill(pids[STOPPED], SIGCONT);
  while (record(service, 1) && MPI_Wtime() < end) usleep(10000);
  CHECK(!record(service, 1));
}

static void simulate(int told) {
  mpiserve_service *stopped, *other;
  CHECK(!mpiserve_service_find(session, NAMES[STOPPED], &stopped));
  CHECK(!mpiserve_service_find(session, NAMES[OTHER], &other));
  tensors = calloc((size_t)ROWS * ROW, sizeof *tensors);
  kill(pids[STOPPED], SIGSTOP);
  setenv("MPISERVE_CLOSE_TIMEOUT", "0.5", 1);
  CHECK(fill(stopped) == told);
  unsetenv("MPISERVE_CLOSE_TIMEOUT");
  CHECK_TEXT(mpiserve_last_error(), told == MPISERVE_EPEER ? "stopped by a signal" : "MiB");
  int code = record(other, 1); /* it may have to tell of a record that is lost */
  CHECK(!code || code == MPISERVE_EPEER);
  CHECK(!record(other, 1));
  go_on(stopped);
  free(tensors);
}

/* ---- both -------------------------------------------------------------------------------- */

static int64_t captured(void *memory) {
  msi_ring ring;
  int64_t rows = 0;
  msi_ring_open(&ring, memory, RING);
  for (const msi_record *r; (r = msi_ring_next(&ring)); msi_ring_take(&ring, r)) rows += r->rows;
  return rows;
}

static void run(int rank, int told) {
  void *memory = calloc(1, RING);
  int role = rank ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, role, &session));
  if (rank)
    serve(rank, memory);
  else
    simulate(told);
  CHECK(!mpiserve_close(session));
  CHECK(rank != OTHER || captured(memory) >= 1);
  free(memory);
}

int main(int argc, char **argv) {
  int rank, level, pid = (int)getpid();
  setenv("MPISERVE_CAPTURE", "on", 1);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Allgather(&pid, 1, MPI_INT, pids, 1, MPI_INT, MPI_COMM_WORLD);
  setenv("MPISERVE_STOPPED_TIMEOUT", "0.3", 1);
  run(rank, MPISERVE_EPEER);
  setenv("MPISERVE_STOPPED_TIMEOUT", "0", 1); /* never: then time alone ends the wait */
  run(rank, MPISERVE_ETIMEOUT);
  MPI_Finalize();
  return check_result();
}
