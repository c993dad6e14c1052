/* ranks: 3
 *
 * What two simulation ranks record is in the ring of the head, beside the answers: in slots and in
 * leased rows, cut into pieces, while a model runs and while the service is suspended; also of a
 * service that has its results where its inputs were. Services that nobody captures get nothing.
 */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/ring.h"
#include "check.h"
#include "mpiserve.h"

enum { MOST = 50, LARGEST = 130, TIMES = 40, RING = 1 << 22, SERVICES = 3 };
static mpiserve_session *session;
static const double LONG = 60;
static const char *const NAMES[SERVICES] = {"plain", "over", "alone"};

/* ---- the inference rank -------------------------------------------------------------- */

static mpiserve_description describe(int number) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  mpiserve_description d = {.n_inputs = 1, .n_outputs = 1, .max_batch_rows = MOST};
  strcpy(d.name, NAMES[number]);
  d.overwrites = number == 1;
  d.inputs[0] = d.outputs[0] = spec;
  strcpy(d.outputs[0].name, "y");
  return d;
}

static double of(int rank, int64_t number) { return 1e6 * rank + (double)number; }

/* A model doubles, and physics adds its time step and a half: each pair says whose it is. */
static int look_at(const msi_record *r, double *last) {
  const double *x = (const double *)(r + 1), *y = x + r->rows;
  int physics = r->source == MSI_OF_PHYSICS, wrong = 0;
  for (uint32_t i = 0; i < r->rows; i++) {
    wrong += y[i] != (physics ? x[i] + (double)r->step + 0.5 : 2 * x[i]);
    if (!physics) continue;
    wrong += x[i] != last[r->rank]++ || r->step < 7;
  }
  CHECK(!physics || (!r->batch_rows && !r->generation && !r->model && !r->batch));
  CHECK(physics || (r->batch_rows && r->generation == 1 && r->model == 5));
  return wrong;
}

static void look(const msi_ring *ring) {
  int64_t rows[SERVICES][2] = {{0}};
  double last[SERVICES][3];
  int wrong = 0;
  for (int s = 0; s < SERVICES; s++)
    for (int rank = 0; rank < 3; rank++) last[s][rank] = of(rank, 0);
  for (const msi_record *r; (r = msi_ring_next(ring)); msi_ring_take(ring, r)) {
    if (!r->rows) continue;
    wrong += look_at(r, last[r->service]);
    rows[r->service][r->source] += r->rows;
  }
  int64_t all = 0;
  for (int n = 1; n <= TIMES; n++) all += n * LARGEST / TIMES;
  CHECK(!wrong && !ring->shared->dropped);
  CHECK(rows[0][MSI_OF_PHYSICS] == 2 * (all + 2) && rows[0][MSI_OF_MODEL] == 2 * MOST);
  CHECK(rows[1][MSI_OF_PHYSICS] == 2 * (all + 1) && !rows[1][MSI_OF_MODEL]);
  CHECK(!rows[2][MSI_OF_PHYSICS] && !rows[2][MSI_OF_MODEL]);
}

static int answer(const mpiserve_batch *batch) {
  static int64_t answered;
  double *y = batch->outputs[0];
  usleep(200000); /* what is recorded meanwhile waits, or is copied */
  for (int64_t i = 0; i < batch->rows; i++) y[i] = 2 * ((const double *)batch->inputs[0])[i];
  int code = mpiserve_batch_reply(session, (const void *const *)batch->outputs);
  if ((answered += batch->rows) == 2 * MOST) CHECK(!mpiserve_suspend(session, 0, 1));
  return code;
}

static void serve(void *memory) {
  mpiserve_description d[SERVICES] = {describe(0), describe(1), describe(2)};
  mpiserve_capture capture = {.memory = memory, .bytes = RING, .reader = -1, .share = 1};
  mpiserve_batch batch;
  int code;
  CHECK(!mpiserve_publish(session, SERVICES, d));
  CHECK(!mpiserve_capture_set(session, 1, &capture));
  capture.model = 5;
  CHECK(!mpiserve_capture_set(session, 0, &capture));
  while ((code = mpiserve_batch_next(session, LONG, &batch)) == MPISERVE_OK) CHECK(!answer(&batch));
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- the simulation ranks --------------------------------------------------------------- */

static mpiserve_tensor tensor(double *data, int64_t rows) {
  return (mpiserve_tensor){NULL, data, MPISERVE_FLOAT64, 1, {rows}};
}

static int64_t steps;

static void step(void) {
  CHECK(!mpiserve_step(session));
  steps++;
}

/* Arrays are of no use to anybody when it returns, and the next time step begins. */
static int record(mpiserve_service *service, int rank, int64_t *number, int64_t rows) {
  double x[LARGEST], y[LARGEST];
  int kept = 7;
  for (int64_t i = 0; i < rows; i++) y[i] = (x[i] = of(rank, (*number)++)) + (double)steps + 0.5;
  mpiserve_tensor in = tensor(x, rows), out = tensor(y, rows);
  CHECK(!mpiserve_record(service, 1, &in, 1, &out, &kept));
  memset(x, 0xff, sizeof x);
  memset(y, 0xff, sizeof y);
  step();
  return kept;
}

static void record_all(mpiserve_service *service, int rank, int64_t *number) {
  for (int n = 1; n <= TIMES; n++) CHECK(record(service, rank, number, n * LARGEST / TIMES) == 1);
}

static void test_wrong_use(mpiserve_service *service) {
  double x[2];
  mpiserve_tensor one = tensor(x, 1), two = tensor(x, 2);
  int kept = 7;
  CHECK(mpiserve_record(service, 1, &one, 1, &two, &kept) == MPISERVE_EROWS && !kept);
  CHECK(mpiserve_record(service, 0, NULL, 1, &one, NULL) == MPISERVE_ESHAPE);
  CHECK(mpiserve_record(service, 1, NULL, 1, &one, NULL) == MPISERVE_EARG);
  CHECK(mpiserve_record(NULL, 1, &one, 1, &one, NULL) == MPISERVE_EARG);
}

static void simulate(int rank) {
  mpiserve_service *service[SERVICES];
  double x[MOST] = {0}, y[MOST];
  mpiserve_tensor in = tensor(x, MOST), out = tensor(y, MOST);
  mpiserve_request request;
  int64_t numbers[SERVICES] = {0};
  for (int i = 0; i < 7; i++) step();
  for (int s = 0; s < SERVICES; s++) CHECK(!mpiserve_service_find(session, NAMES[s], &service[s]));
  test_wrong_use(service[0]);
  CHECK(record(service[0], rank, &numbers[0], 1) == 1);
  CHECK(!mpiserve_submit(service[0], 1, &in, 1, &out, NULL, &request));
  record_all(service[0], rank, &numbers[0]);
  CHECK(!mpiserve_wait(session, &request, LONG, NULL));
  CHECK(record(service[0], rank, &numbers[0], 1) == 1); /* it is suspended */
  record_all(service[1], rank, &numbers[1]);
  CHECK(record(service[1], rank, &numbers[1], 1) == 1);
  while (record(service[2], rank, &numbers[2], 1)) usleep(1000);
}

int main(int argc, char **argv) {
  int rank, level;
  setenv("MPISERVE_CAPTURE", "on", 1);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  void *memory = calloc(1, RING);
  CHECK(!mpiserve_open(MPI_COMM_WORLD, rank == 2 ? MPISERVE_INFERENCE : MPISERVE_SIMULATION,
                       &session));
  if (rank == 2)
    serve(memory);
  else
    simulate(rank);
  CHECK(!mpiserve_close(session));
  msi_ring ring;
  msi_ring_open(&ring, memory, RING);
  if (rank == 2) look(&ring);
  free(memory);
  MPI_Finalize();
  return check_result();
}
