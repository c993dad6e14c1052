/* ranks: 3
 *
 * A service whose tensors have no rows, and one whose requests may have 0 rows. */
#define _GNU_SOURCE
#include <mpi.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { NY = 3, NX = 50, STEPS = 30, SOME = 30, MANY = 50 };

static mpiserve_description field(void) {
  mpiserve_spec w = {.name = "w", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {NY, NX}};
  mpiserve_spec a = {.name = "a", .dtype = MPISERVE_FLOAT64};
  mpiserve_spec sum = {.name = "sum", .dtype = MPISERVE_FLOAT64};
  return (mpiserve_description){.name = "field",
                                .n_inputs = 2,
                                .n_outputs = 2,
                                .inputs = {w, a},
                                .outputs = {w, sum},
                                .max_batch_rows = 1,
                                .rows = MPISERVE_NO_ROWS};
}

static mpiserve_description rows(void) {
  mpiserve_spec x = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, 2}};
  return (mpiserve_description){.name = "rows",
                                .n_inputs = 1,
                                .n_outputs = 1,
                                .inputs = {x},
                                .outputs = {x},
                                .max_batch_rows = 100,
                                .max_delay_ns = INT64_C(20000000000), /* nobody waits so long */
                                .allow_empty = 1};
}

/* ---- the inference rank ---------------------------------------------------------------- */

static void weigh(const mpiserve_batch *batch) {
  const double *w = batch->inputs[0], a = *(const double *)batch->inputs[1];
  double *y = batch->outputs[0], sum = 0;
  CHECK(batch->rows == 1 && batch->requests == 1);
  for (int i = 0; i < NY * NX; i++) sum += y[i] = a * w[i];
  *(double *)batch->outputs[1] = sum;
}

static void twice(const mpiserve_batch *batch) {
  CHECK(batch->rows > 0);
  for (int64_t i = 0; i < 2 * batch->rows; i++)
    ((double *)batch->outputs[0])[i] = 2 * ((const double *)batch->inputs[0])[i];
}

static void serve(void) {
  mpiserve_session *session;
  mpiserve_batch batch;
  mpiserve_counters counters;
  int code;
  mpiserve_description both[] = {field(), rows()};
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_INFERENCE, &session));
  CHECK(!mpiserve_publish(session, 2, both));
  CHECK(mpiserve_rows_set(session, 0, MPISERVE_INDEPENDENT) == MPISERVE_EARG);
  CHECK(mpiserve_rows_set(session, 1, MPISERVE_NO_ROWS) == MPISERVE_EARG);
  while ((code = mpiserve_batch_next(session, 10, &batch)) == MPISERVE_OK) {
    if (batch.service)
      twice(&batch);
    else
      weigh(&batch);
    CHECK(!mpiserve_batch_reply(session, (const void *const *)batch.outputs));
  }
  CHECK(code == MPISERVE_ECLOSED);
  CHECK(!mpiserve_counters_get(session, &counters) && !counters.closed_by_delay);
  CHECK(!mpiserve_close(session));
}

/* ---- simulation ranks -------------------------------------------------------------------- */

static double w[NY * NX], y[NY * NX], a, sum;
static mpiserve_tensor field_in[] = {{NULL, w, MPISERVE_FLOAT64, 2, {NY, NX}},
                                     {NULL, &a, MPISERVE_FLOAT64, 0, {0}}};
static mpiserve_tensor field_out[] = {{NULL, y, MPISERVE_FLOAT64, 2, {NY, NX}},
                                      {NULL, &sum, MPISERVE_FLOAT64, 1, {1}}};

static void test_fields(mpiserve_service *service, int rank) {
  mpiserve_stats stats;
  for (int step = 0; step < STEPS; step++) {
    double expected = 0;
    a = 1 + rank;
    for (int i = 0; i < NY * NX; i++) w[i] = i + step;
    for (int i = 0; i < NY * NX; i++) expected += a * w[i];
    CHECK(!mpiserve_infer(service, 2, field_in, 2, field_out, 10, &stats));
    CHECK(y[NX] == a * (NX + step) && sum == expected && stats.rows == 1);
  }
}

static void test_wrong_shapes(mpiserve_service *service) {
  mpiserve_tensor wrong[] = {field_in[0], field_in[1]};
  mpiserve_buffer buffer;
  wrong[0].shape[1] = NX - 1;
  CHECK(mpiserve_infer(service, 2, wrong, 2, field_out, 10, NULL) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "input 'w': shape is [3, 49], the signature says [3, 50]");
  CHECK(mpiserve_infer(service, 1, wrong, 2, field_out, 10, NULL) == MPISERVE_ESHAPE);
  CHECK(mpiserve_buffer_take(service, 2, &buffer) == MPISERVE_EROWS);
  CHECK(!mpiserve_buffer_take(service, 1, &buffer));
  memcpy(buffer.inputs[0], w, sizeof w);
  wrong[0] = field_in[0];
  wrong[0].data = buffer.inputs[0];
  wrong[1].data = buffer.inputs[1];
  *(double *)buffer.inputs[1] = 4;
  CHECK(!mpiserve_infer(service, 2, wrong, 2, field_out, 10, NULL) && y[5] == 4 * w[5]);
  CHECK(!mpiserve_buffer_give(service, &buffer));
}

static int never(void *data, int64_t n, const void *const *in, void *const *out, int code,
                 const char *why) {
  (void)data, (void)n, (void)in, (void)out, (void)code, (void)why;
  return 1;
}

static void test_no_rows(mpiserve_session *session, mpiserve_service *service, int rank) {
  MPI_Comm comm;
  mpiserve_stats stats;
  CHECK(!mpiserve_comm(session, &comm) && !mpiserve_fallback_set(service, never, NULL));
  MPI_Barrier(comm); /* all count in the census */
  for (int step = 0; step < STEPS; step++) {
    int64_t n = (rank + step) % 2 * 3;
    double in[6] = {rank, step, 2, 3, 4, 5}, out[6] = {0};
    mpiserve_tensor x = {NULL, n ? in : NULL, MPISERVE_FLOAT64, 2, {n, 2}};
    mpiserve_tensor z = {NULL, n ? out : NULL, MPISERVE_FLOAT64, 2, {n, 2}};
    CHECK(!mpiserve_infer(service, 1, &x, 1, &z, 10, &stats));
    CHECK(stats.rows == n && out[1] == (n ? 2 * step : 0) && stats.generation == 1);
    MPI_Barrier(comm);
  }
}

/* Of so many rows that each request needs memory of the head's, and the second one more of it. */
static void infer_rows(mpiserve_service *service, int64_t n) {
  static double in[2 * MANY], out[2 * MANY];
  mpiserve_tensor x = {NULL, in, MPISERVE_FLOAT64, 2, {n, 2}}, z = x;
  z.data = out;
  CHECK(!mpiserve_infer(service, 1, &x, 1, &z, 10, NULL));
}

/* A rank has a request of 0 rows under way, for which the batch waits, and asks for memory. */
static void test_memory_beside_no_rows(mpiserve_session *session, mpiserve_service *service,
                                       int rank) {
  enum { NAP_US = 100000 };
  MPI_Comm comm;
  CHECK(!mpiserve_comm(session, &comm));
  for (int turn = 0; turn < 2; turn++) {
    mpiserve_request empty;
    mpiserve_tensor none = {NULL, NULL, MPISERVE_FLOAT64, 2, {0, 2}};
    infer_rows(service, SOME);
    MPI_Barrier(comm);
    if (rank == turn)
      CHECK(!mpiserve_submit(service, 1, &none, 1, &none, NULL, &empty));
    else
      usleep(NAP_US);
    infer_rows(service, MANY);
    if (rank == turn) CHECK(!mpiserve_wait(session, &empty, 10, NULL));
    MPI_Barrier(comm);
  }
}

static void simulate(int rank) {
  mpiserve_session *session;
  mpiserve_service *fields, *some;
  mpiserve_description d;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  CHECK(!mpiserve_service_find(session, "field", &fields));
  CHECK(!mpiserve_service_describe(fields, &d, NULL, NULL, NULL));
  CHECK(d.rows == MPISERVE_NO_ROWS && d.inputs[0].shape[0] == NY && !d.outputs[1].ndim);
  test_fields(fields, rank);
  test_wrong_shapes(fields);
  CHECK(!mpiserve_service_find(session, "rows", &some));
  test_no_rows(session, some, rank);
  test_memory_beside_no_rows(session, some, rank);
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
