/* ranks: 3
 *
 * In-place memory: every combination of buffers and ordinary memory, rows in the
 * middle, several requests on one buffer, and every wrong use. */
#include <mpi.h>
#include <stdlib.h>

#include "check.h"
#include "mpiserve.h"

enum { COLUMNS = 3, ROWS = 600, MAX_ROWS = 1000, MAX_BUFFERS = 8 };

static mpiserve_description describe(const char *name, int overwrites) {
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, COLUMNS}};
  mpiserve_description d = {.n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {spec},
                            .outputs = {spec},
                            .max_batch_rows = MAX_ROWS,
                            .pool_bytes = 100 * MAX_ROWS * COLUMNS * 8,
                            .max_delay_ns = 1000000,
                            .overwrites = overwrites};
  snprintf(d.name, sizeof d.name, "%s", name);
  return d;
}

static mpiserve_tensor tensor(double *data, int64_t rows) {
  return (mpiserve_tensor){
      .data = data, .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {rows, COLUMNS}};
}

static void fill(double *data, int64_t rows, double seed) {
  for (int64_t i = 0; i < rows * COLUMNS; i++) data[i] = seed + (double)i;
}

/* Asks, and checks that each output is factor times its input. */
static void query(mpiserve_service *service, double *in, double *out, int64_t rows, double factor) {
  mpiserve_tensor input = tensor(in, rows), output = tensor(out, rows);
  double *before = malloc((size_t)rows * COLUMNS * sizeof *before);
  memcpy(before, in, (size_t)rows * COLUMNS * sizeof *before);
  CHECK(!mpiserve_infer(service, 1, &input, 1, &output, 10, NULL));
  int wrong = 0;
  for (int64_t i = 0; i < rows * COLUMNS; i++) wrong += out[i] != factor * before[i];
  CHECK(wrong == 0);
  free(before);
}

static void test_all_combinations(mpiserve_service *service, double factor) {
  static double in[ROWS * COLUMNS], out[ROWS * COLUMNS];
  mpiserve_buffer a, b;
  CHECK(!mpiserve_buffer_take(service, ROWS, &a) && !mpiserve_buffer_take(service, ROWS, &b));
  CHECK(a.rows == ROWS && a.id && a.id != b.id);
  double *sources[] = {in, a.inputs[0]}, *places[] = {out, a.outputs[0], b.outputs[0]};
  const int64_t sizes[] = {ROWS, 100, 1};
  for (int s = 0; s < 2; s++)
    for (int p = 0; p < 3; p++)
      for (int n = 0; n < 3; n++) {
        fill(sources[s], ROWS, 10 * s + p);
        query(service, sources[s], places[p], sizes[n], factor);
      }
  fill(a.inputs[0], ROWS, 5);
  query(service, (double *)a.inputs[0] + 7 * COLUMNS, (double *)b.outputs[0] + 99 * COLUMNS, 50,
        factor);
  query(service, (double *)a.inputs[0] + 1, out, 50, factor); /* no row begins there */
  CHECK(!mpiserve_buffer_give(service, &a) && !mpiserve_buffer_give(service, &b) && !a.id);
}

/* What a request does not name it does not touch. */
static void test_the_other_half_is_left_alone(mpiserve_service *service) {
  static double out[ROWS * COLUMNS];
  mpiserve_buffer a;
  CHECK(!mpiserve_buffer_take(service, ROWS, &a));
  fill(a.inputs[0], ROWS, 1);
  fill(a.outputs[0], ROWS, 77);
  query(service, a.inputs[0], out, ROWS, 2);
  CHECK(((double *)a.outputs[0])[5] == 77 + 5);
  query(service, out, a.outputs[0], ROWS, 2);
  CHECK(((double *)a.inputs[0])[5] == 1 + 5);
  CHECK(!mpiserve_buffer_give(service, &a));
}

static void test_requests_share_a_buffer(mpiserve_session *session, mpiserve_service *service) {
  enum { PIECES = 6, PIECE = ROWS / PIECES };
  mpiserve_buffer a;
  mpiserve_request requests[PIECES];
  CHECK(!mpiserve_buffer_take(service, ROWS, &a));
  fill(a.inputs[0], ROWS, 3);
  for (int i = 0; i < PIECES; i++) {
    mpiserve_tensor in = tensor((double *)a.inputs[0] + i * PIECE * COLUMNS, PIECE);
    mpiserve_tensor out = tensor((double *)a.outputs[0] + i * PIECE * COLUMNS, PIECE);
    CHECK(!mpiserve_submit(service, 1, &in, 1, &out, NULL, &requests[i]));
  }
  for (int i = PIECES - 1; i >= 0; i--) CHECK(!mpiserve_wait(session, &requests[i], 10, NULL));
  int wrong = 0;
  for (int i = 0; i < ROWS * COLUMNS; i++)
    wrong += ((double *)a.outputs[0])[i] != 2 * ((double *)a.inputs[0])[i];
  CHECK(wrong == 0);
  CHECK(!mpiserve_buffer_give(service, &a));
}

/* The memory stays the request's until the head is done with it. */
static void test_a_cancelled_request_keeps_its_buffer(mpiserve_session *session,
                                                      mpiserve_service *service) {
  for (int i = 0; i < 3 * MAX_BUFFERS; i++) {
    mpiserve_buffer a;
    mpiserve_request request;
    CHECK(!mpiserve_buffer_take(service, ROWS, &a));
    fill(a.inputs[0], ROWS, i);
    mpiserve_tensor in = tensor(a.inputs[0], ROWS), out = tensor(a.outputs[0], ROWS);
    CHECK(!mpiserve_submit(service, 1, &in, 1, &out, NULL, &request));
    CHECK(!mpiserve_cancel(session, &request));
    mpiserve_buffer copy = a;
    CHECK(!mpiserve_buffer_give(service, &a));
    CHECK(mpiserve_buffer_give(service, &copy) == MPISERVE_ESTATE);
  }
}

static void test_a_request_that_goes_on_keeps_its_buffer(mpiserve_session *session,
                                                         mpiserve_service *service,
                                                         mpiserve_service *other) {
  static double mine[ROWS * COLUMNS];
  for (int use = 0; use < 5; use++) { /* as input, output, either where the other lies; elsewhere */
    mpiserve_buffer a, b;
    mpiserve_request request;
    mpiserve_service *asked = use == 4 ? other : service;
    CHECK(!mpiserve_buffer_take(service, ROWS, &a) && !mpiserve_buffer_take(service, ROWS, &b));
    fill(a.inputs[0], ROWS, 1);
    fill(a.outputs[0], ROWS, 1);
    mpiserve_tensor in = tensor(use % 2 ? mine : use == 2 ? a.outputs[0] : a.inputs[0], ROWS);
    mpiserve_tensor out = tensor(use % 2 ? use == 3 ? a.inputs[0] : a.outputs[0] : mine, ROWS);
    CHECK(!mpiserve_submit(asked, 1, &in, 1, &out, NULL, &request));
    CHECK(mpiserve_buffer_give(service, &a) == MPISERVE_ESTATE);
    CHECK_TEXT(mpiserve_last_error(), "a request uses the buffer");
    CHECK(!mpiserve_buffer_give(service, &b));
    CHECK(!mpiserve_wait(session, &request, 60, NULL));
    CHECK(!mpiserve_buffer_give(service, &a));
  }
}

/* A request keeps its rows for the next one of its size; they are no reason to refuse a buffer. */
static void test_rows_of_ended_requests(mpiserve_session *session, mpiserve_service *service) {
  enum { FLYING = 4, ALL = MAX_ROWS * COLUMNS };
  mpiserve_request requests[FLYING];
  mpiserve_buffer buffers[FLYING];
  double *x = malloc(FLYING * ALL * sizeof *x);
  fill(x, FLYING * MAX_ROWS, 1);
  for (int i = 0; i < FLYING; i++) {
    mpiserve_tensor each = tensor(x + i * ALL, MAX_ROWS);
    CHECK(!mpiserve_submit(service, 1, &each, 1, &each, NULL, &requests[i]));
  }
  for (int i = 0; i < FLYING; i++) CHECK(!mpiserve_wait(session, &requests[i], 20, NULL));
  for (int i = 0; i < FLYING; i++) CHECK(!mpiserve_buffer_take(service, MAX_ROWS, &buffers[i]));
  mpiserve_buffer more;
  if (mpiserve_buffer_take(service, MAX_ROWS, &more)) /* over rma the memory is this rank's own */
    CHECK_TEXT(mpiserve_last_error(), "no room for a buffer of 1000 rows: give other buffers back, "
                                      "or raise the service's max_batch_rows");
  else
    CHECK(!mpiserve_buffer_give(service, &more));
  for (int i = 0; i < FLYING; i++) CHECK(!mpiserve_buffer_give(service, &buffers[i]));
  free(x);
}

static void test_wrong_use(mpiserve_service *service) {
  mpiserve_buffer buffers[MAX_BUFFERS], more = {0};
  CHECK(mpiserve_buffer_take(NULL, 1, &more) == MPISERVE_EARG);
  CHECK(mpiserve_buffer_take(service, 1, NULL) == MPISERVE_EARG);
  CHECK(mpiserve_buffer_take(service, 0, &more) == MPISERVE_EROWS);
  CHECK(mpiserve_buffer_take(service, MAX_ROWS + 1, &more) == MPISERVE_EROWS);
  for (int i = 0; i < MAX_BUFFERS; i++) CHECK(!mpiserve_buffer_take(service, 10, &buffers[i]));
  CHECK(mpiserve_buffer_take(service, 10, &more) == MPISERVE_ENOMEM && !more.id);
  CHECK(strstr(mpiserve_last_error(), "8 buffers"));
  more = buffers[0];
  for (int i = 0; i < MAX_BUFFERS; i++) CHECK(!mpiserve_buffer_give(service, &buffers[i]));
  CHECK(mpiserve_buffer_give(service, &buffers[0]) == MPISERVE_ESTATE);
  CHECK(mpiserve_buffer_give(service, &more) == MPISERVE_ESTATE); /* a copy of one given back */
  CHECK(!mpiserve_buffer_take(service, 10, &more) && !mpiserve_buffer_give(service, &more));
}

static void simulate(int rank) {
  mpiserve_session *session;
  mpiserve_service *twice, *echo;
  static mpiserve_buffer kept; /* of the process: never given back */
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  CHECK(!mpiserve_service_find(session, "twice", &twice));
  CHECK(!mpiserve_service_find(session, "echo", &echo));
  for (int round = 0; round < 3; round++) {
    test_all_combinations(twice, 2);
    test_all_combinations(echo, 1);
    test_the_other_half_is_left_alone(twice);
    test_requests_share_a_buffer(session, twice);
    test_a_cancelled_request_keeps_its_buffer(session, twice);
    test_a_request_that_goes_on_keeps_its_buffer(session, twice, echo);
    test_rows_of_ended_requests(session, twice);
    test_wrong_use(twice);
  }
  CHECK(!mpiserve_buffer_take(twice, 10, &kept));
  fill(kept.inputs[0], 10, rank);
  CHECK(!mpiserve_close(session));
  CHECK(((double *)kept.inputs[0])[3] == rank + 3); /* as the header promises */
}

static void serve(const char *name, int overwrites) {
  mpiserve_session *session;
  mpiserve_batch batch;
  mpiserve_description description = describe(name, overwrites);
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_INFERENCE, &session));
  CHECK(!mpiserve_publish(session, 1, &description));
  mpiserve_engine echo = {0};
  int code = overwrites ? mpiserve_engine_load(NULL, NULL, &description, &echo) : MPISERVE_OK;
  if (overwrites) CHECK(!mpiserve_engine_set(session, 0, &echo));
  while (!code && !(code = mpiserve_batch_next(session, 60, &batch))) {
    const double *in = batch.inputs[0];
    for (int64_t i = 0; i < batch.rows * COLUMNS; i++) ((double *)batch.outputs[0])[i] = 2 * in[i];
    code = mpiserve_batch_reply(session, (const void *const *)batch.outputs);
  }
  CHECK(code == MPISERVE_ECLOSED);
  CHECK(!mpiserve_close(session));
  mpiserve_engine_close(&echo);
}

int main(int argc, char **argv) {
  int rank, level;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0) simulate(rank);
  if (rank == 1) serve("twice", 0);
  if (rank == 2) serve("echo", 1);
  MPI_Finalize();
  return check_result();
}
