/* ranks: 4
 *
 * Services whose tensors have free dimensions: images of several sizes, interleaved by three
 * clients; small ones, which travel in slots; and one without rows. */
#include <mpi.h>
#include <stdlib.h>

#include "check.h"
#include "mpiserve.h"

enum { HEIGHT = 40, WIDTH = 50, ROWS = 4, SMALL = 6, MOST = 100, STEPS = 40, IMAGES = 0, TINY = 1 };

typedef int64_t shapes[MPISERVE_MAX_DIMS];

static mpiserve_description images(void) {
  mpiserve_spec x = {.name = "x",
                     .dtype = MPISERVE_FLOAT64,
                     .ndim = 3,
                     .shape = {-1, -1, -1},
                     .max_shape = {0, HEIGHT, WIDTH}};
  mpiserve_spec sums = {.name = "sums",
                        .dtype = MPISERVE_FLOAT64,
                        .ndim = 2,
                        .shape = {-1, -1},
                        .max_shape = {0, HEIGHT}};
  return (mpiserve_description){.name = "images",
                                .n_inputs = 1,
                                .n_outputs = 2,
                                .inputs = {x},
                                .outputs = {x, sums},
                                .max_batch_rows = ROWS,
                                .max_delay_ns = 1000000};
}

static mpiserve_description tiny(void) {
  mpiserve_spec x = {.name = "x",
                     .dtype = MPISERVE_FLOAT32,
                     .ndim = 2,
                     .shape = {-1, -1},
                     .max_shape = {0, SMALL},
                     .check = MPISERVE_BOUNDS,
                     .min = -1e6,
                     .max = 1e6};
  return (mpiserve_description){.name = "tiny",
                                .n_inputs = 1,
                                .n_outputs = 1,
                                .inputs = {x},
                                .outputs = {x},
                                .max_batch_rows = 3 * ROWS,
                                .allow_empty = 1};
}

static mpiserve_description graph(void) {
  mpiserve_spec nodes = {
      .name = "nodes", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, 2}, .max_shape = {MOST}};
  mpiserve_spec edges = {.name = "edges",
                         .dtype = MPISERVE_INT32,
                         .ndim = 2,
                         .shape = {-1, 2},
                         .max_shape = {2 * MOST}};
  return (mpiserve_description){.name = "graph",
                                .n_inputs = 2,
                                .n_outputs = 1,
                                .inputs = {nodes, edges},
                                .outputs = {nodes},
                                .max_batch_rows = 1,
                                .rows = MPISERVE_NO_ROWS,
                                .allow_empty = 1};
}

/* ---- the inference rank ---------------------------------------------------------------- */

/* y = 2 x, and the sum of each line of it. */
static void answer_images(const mpiserve_batch *batch, const shapes *given, shapes *made) {
  int64_t h = given[0][1], w = given[0][2];
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0], *sums = batch->outputs[1];
  CHECK(given[0][0] == batch->rows && h >= 1 && h <= HEIGHT && w >= 1 && w <= WIDTH);
  for (int64_t i = 0; i < batch->rows * h; i++) {
    sums[i] = 0;
    for (int64_t j = 0; j < w; j++) sums[i] += y[i * w + j] = 2 * x[i * w + j];
  }
  memcpy(made[0], given[0], sizeof made[0]);
  made[1][1] = h;
}

/* The first columns but one, or all if it is one. */
static void answer_tiny(const mpiserve_batch *batch, const shapes *given, shapes *made) {
  int64_t n = given[0][1], m = n > 1 ? n - 1 : n;
  const float *x = batch->inputs[0];
  float *y = batch->outputs[0];
  for (int64_t i = 0; i < batch->rows; i++)
    for (int64_t j = 0; j < m; j++) y[i * m + j] = x[i * n + j];
  made[0][1] = m;
}

/* Each node and what its edges bring. */
static void answer_graph(const mpiserve_batch *batch, const shapes *given, shapes *made) {
  int64_t nodes = given[0][0], edges = given[1][0];
  const double *x = batch->inputs[0];
  const int32_t (*edge)[2] = batch->inputs[1];
  double *y = batch->outputs[0];
  CHECK(batch->rows == 1 && batch->requests == 1);
  for (int64_t i = 0; i < 2 * nodes; i++) y[i] = x[i];
  for (int64_t e = 0; e < edges; e++)
    for (int k = 0; k < 2; k++) y[2 * edge[e][1] + k] += x[2 * edge[e][0] + k];
  made[0][0] = nodes;
  made[0][1] = 2;
}

static void answer(mpiserve_session *session, const mpiserve_batch *batch) {
  shapes given[2], made[2] = {{0}};
  CHECK(!mpiserve_batch_shapes_get(session, given[0]));
  if (batch->service == IMAGES)
    answer_images(batch, given, made);
  else if (batch->service == TINY)
    answer_tiny(batch, given, made);
  else
    answer_graph(batch, given, made);
  CHECK(!mpiserve_result_shapes_set(session, batch->service, 1, made[0]));
  CHECK(mpiserve_result_shapes_set(session, batch->service, 2, made[0]) == MPISERVE_EARG);
  made[0][1] = WIDTH + 1;
  CHECK(mpiserve_result_shapes_set(session, batch->service, 1, made[0]) == MPISERVE_ESHAPE);
  CHECK(!mpiserve_batch_reply(session, (const void *const *)batch->outputs));
}

static void serve(void) {
  mpiserve_session *session;
  mpiserve_batch batch;
  mpiserve_counters counters;
  mpiserve_engine echo;
  int64_t none[16 * MPISERVE_MAX_DIMS];
  int code;
  mpiserve_description all[] = {images(), tiny(), graph()};
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_INFERENCE, &session));
  CHECK(!mpiserve_publish(session, 3, all));
  CHECK(!mpiserve_engine_load(NULL, NULL, &all[1], &echo));
  CHECK(mpiserve_engine_set(session, 1, &echo) == MPISERVE_EARG);
  mpiserve_engine_close(&echo);
  CHECK(mpiserve_batch_shapes_get(session, none) == MPISERVE_ESTATE);
  CHECK(mpiserve_result_shapes_set(session, 3, 1, none) == MPISERVE_EARG);
  while ((code = mpiserve_batch_next(session, 10, &batch)) == MPISERVE_OK) answer(session, &batch);
  CHECK(code == MPISERVE_ECLOSED);
  CHECK(!mpiserve_counters_get(session, &counters));
  CHECK(counters.batches < counters.requests); /* equal ones share batches */
  CHECK(!mpiserve_close(session));
}

/* ---- simulation ranks -------------------------------------------------------------------- */

static double x[4][ROWS * HEIGHT * WIDTH], y[4][ROWS * HEIGHT * WIDTH], sums[4][ROWS * HEIGHT];
static const int64_t sizes[4][2] = {{HEIGHT, WIDTH}, {7, 11}, {1, 1}, {HEIGHT, 3}};

static double value(int rank, int step, int64_t i) {
  return rank * 1000 + step + (double)(i % 997) / 1024;
}

static mpiserve_tensor image(double *data, int64_t rows, int64_t h, int64_t w) {
  return (mpiserve_tensor){
      .data = data, .dtype = MPISERVE_FLOAT64, .ndim = 3, .shape = {rows, h, w}};
}

static void check_image(int k, int rank, int step, int64_t rows, int64_t h, int64_t w) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < rows * h; i++) {
    double sum = 0;
    for (int64_t j = 0; j < w; j++) {
      double expected = 2 * value(rank, step, i * w + j);
      wrong += y[k][i * w + j] != expected;
      sum += expected;
    }
    wrong += sums[k][i] != sum;
  }
  CHECK(!wrong);
}

/* Four requests of four sizes are under way at a time; three clients interleave them. */
static void test_images(mpiserve_session *session, mpiserve_service *service, int rank) {
  for (int step = 0; step < STEPS; step++) {
    mpiserve_request requests[4];
    shapes found[4][2];
    int64_t rows[4];
    for (int k = 0; k < 4; k++) {
      const int64_t *size = sizes[(k + rank + step) % 4];
      rows[k] = 1 + (rank + k * step) % ROWS;
      for (int64_t i = 0; i < rows[k] * size[0] * size[1]; i++) x[k][i] = value(rank, step, i);
      mpiserve_tensor in = image(x[k], rows[k], size[0], size[1]);
      mpiserve_tensor out[] = {image(y[k], rows[k], HEIGHT, WIDTH),
                               {NULL, sums[k], MPISERVE_FLOAT64, 2, {rows[k], HEIGHT}}};
      mpiserve_options options = {.result_shapes = found[k][0], .priority = k % 2 * 5};
      CHECK(!mpiserve_submit(service, 1, &in, 2, out, &options, &requests[k]));
    }
    for (int k = 0; k < 4; k++) {
      const int64_t *size = sizes[(k + rank + step) % 4];
      CHECK(!mpiserve_wait(session, &requests[k], 20, NULL));
      CHECK(found[k][0][0] == rows[k] && found[k][0][1] == size[0] && found[k][0][2] == size[1]);
      CHECK(found[k][1][0] == rows[k] && found[k][1][1] == size[0]);
      check_image(k, rank, step, rows[k], size[0], size[1]);
    }
  }
}

static void test_shapes_that_do_not_fit(mpiserve_session *session, mpiserve_service *service) {
  mpiserve_tensor in = image(x[0], 1, HEIGHT + 1, 1);
  mpiserve_tensor out[] = {image(y[0], 1, 3, 4), {NULL, sums[0], MPISERVE_FLOAT64, 2, {1, 3}}};
  mpiserve_request request;
  int64_t found[2 * MPISERVE_MAX_DIMS];
  mpiserve_options options = {.result_shapes = found};
  CHECK(mpiserve_infer(service, 1, &in, 2, out, 10, NULL) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(),
             "input 'x': shape is [1, 41, 1], the signature says [rows, up to 40, up to 50]");
  in = image(x[0], 1, 0, 1);
  CHECK(mpiserve_infer(service, 1, &in, 2, out, 10, NULL) == MPISERVE_ESHAPE);
  in = image(x[0], ROWS + 1, 1, 1);
  out[0].shape[0] = out[1].shape[0] = ROWS + 1;
  CHECK(mpiserve_infer(service, 1, &in, 2, out, 10, NULL) == MPISERVE_EROWS);
  CHECK_TEXT(mpiserve_last_error(), "its tensors have free dimensions");
  /* The result has another shape than the caller has room for. */
  in = image(x[0], 1, 3, 5);
  out[0].shape[0] = out[1].shape[0] = 1;
  CHECK(mpiserve_infer(service, 1, &in, 2, out, 10, NULL) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(),
             "service 'images', output 'x': the result has [1, 3, 5], and the array has [1, 3, 4]");
  CHECK(!mpiserve_submit(service, 1, &in, 2, out, &options, &request));
  CHECK(!mpiserve_cancel(session, &request));
}

static void test_room(mpiserve_session *session, mpiserve_service *service) {
  mpiserve_tensor in = image(x[0], 1, 3, 5);
  mpiserve_tensor out[] = {image(y[0], 1, 2, 7), {NULL, sums[0], MPISERVE_FLOAT64, 2, {1, 3}}};
  int64_t found[2 * MPISERVE_MAX_DIMS];
  mpiserve_options options = {.result_shapes = found};
  mpiserve_request request;
  mpiserve_stats stats;
  CHECK(!mpiserve_submit(service, 1, &in, 2, out, &options, &request));
  CHECK(mpiserve_wait(session, &request, 10, NULL) == MPISERVE_ESHAPE);
  CHECK_TEXT(mpiserve_last_error(), "the result has [1, 3, 5], more than the room of [1, 2, 7]");
  out[0].shape[1] = 3; /* 21 elements for 15 */
  CHECK(!mpiserve_submit(service, 1, &in, 2, out, &options, &request));
  CHECK(!mpiserve_wait(session, &request, 10, &stats) && found[1] == 3 && found[2] == 5);
  CHECK(y[0][14] == 2 * x[0][14] && found[MPISERVE_MAX_DIMS + 1] == 3 && stats.rows == 1);
  out[0] = image(y[0], 1, 3, 5);
  CHECK(!mpiserve_infer(service, 1, &in, 2, out, 10, NULL)); /* just this shape */
}

static void test_buffers(mpiserve_service *service) {
  mpiserve_buffer buffer;
  int code = mpiserve_buffer_take(service, 2, &buffer);
  CHECK_TEXT(code ? mpiserve_last_error() : "taken", "taken");
  if (code) return;
  double *in = buffer.inputs[0], *out = buffer.outputs[0];
  mpiserve_tensor from = image(in, 2, 5, 7);
  mpiserve_tensor to[] = {image(out, 2, 5, 7),
                          {NULL, buffer.outputs[1], MPISERVE_FLOAT64, 2, {2, 5}}};
  for (int i = 0; i < 70; i++) in[i] = i;
  CHECK(!mpiserve_infer(service, 1, &from, 2, to, 10, NULL));
  CHECK(out[0] == 0 && out[69] == 138 && ((double *)buffer.outputs[1])[0] == 42);
  CHECK(!mpiserve_buffer_give(service, &buffer));
}

static int never(void *data, int64_t n, const void *const *in, void *const *out, int code,
                 const char *why) {
  (void)data, (void)n, (void)in, (void)out, (void)code, (void)why;
  return 1;
}

static void test_tiny(mpiserve_session *session, mpiserve_service *service, int rank) {
  CHECK(mpiserve_fallback_set(service, never, NULL) == MPISERVE_EARG);
  CHECK(!mpiserve_fallback_set(service, NULL, NULL));
  for (int step = 0; step < 3 * STEPS; step++) {
    int64_t n = step % (SMALL + 1), rows = (step + rank) % 4, m = n > 1 ? n - 1 : n, found[8],
            wrong = 0;
    float in[3 * ROWS * SMALL], out[3 * ROWS * SMALL] = {0};
    for (int i = 0; i < 3 * ROWS * SMALL; i++) in[i] = (float)(rank * 100 + i);
    mpiserve_tensor a = {NULL, in, MPISERVE_FLOAT32, 2, {rows, n}};
    mpiserve_tensor b = {NULL, out, MPISERVE_FLOAT32, 2, {rows, SMALL}};
    mpiserve_options options = {.result_shapes = found};
    mpiserve_request request;
    CHECK(!mpiserve_submit(service, 1, &a, 1, &b, &options, &request));
    CHECK(!mpiserve_wait(session, &request, 10, NULL));
    CHECK(found[0] == rows && found[1] == (rows ? m : SMALL));
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < m; j++) wrong += out[i * m + j] != in[i * n + j];
    CHECK(!wrong);
  }
}

/* What the model returns is checked in the shape that it has. */
static void test_values(mpiserve_service *service) {
  float in[] = {1, 2, 1e7F, 4, 5, 6}, out[6];
  mpiserve_tensor a = {NULL, in, MPISERVE_FLOAT32, 2, {2, 3}};
  mpiserve_tensor b = {NULL, out, MPISERVE_FLOAT32, 2, {2, 2}};
  CHECK(!mpiserve_infer(service, 1, &a, 1, &b, 10, NULL) && out[3] == 5); /* it was left out */
  in[1] = 1e7F;
  CHECK(mpiserve_infer(service, 1, &a, 1, &b, 10, NULL) == MPISERVE_EMODEL);
  CHECK_TEXT(mpiserve_last_error(), "output 'x', row 0: 1e+07 is not within -1e+06 to 1e+06");
}

static void test_graphs(mpiserve_session *session, mpiserve_service *service, int rank) {
  for (int step = 0; step < STEPS; step++) {
    int64_t n = 1 + (rank * 31 + step * 7) % MOST, edges = (step * 13) % (2 * MOST + 1), found[8];
    double in[2 * MOST], out[2 * MOST], expected[2 * MOST];
    int32_t edge[2 * MOST][2];
    for (int i = 0; i < 2 * n; i++) expected[i] = in[i] = rank + i;
    for (int e = 0; e < edges; e++)
      edge[e][0] = (int32_t)(e * 5 % n), edge[e][1] = (int32_t)(e % n);
    for (int e = 0; e < edges; e++)
      for (int k = 0; k < 2; k++) expected[2 * edge[e][1] + k] += in[2 * edge[e][0] + k];
    mpiserve_tensor given[] = {{"edges", edges ? edge : NULL, MPISERVE_INT32, 2, {edges, 2}},
                               {"nodes", in, MPISERVE_FLOAT64, 2, {n, 2}}};
    mpiserve_tensor made = {NULL, out, MPISERVE_FLOAT64, 2, {MOST, 2}};
    mpiserve_options options = {.result_shapes = found};
    mpiserve_request request;
    CHECK(!mpiserve_submit(service, 2, given, 1, &made, &options, &request));
    CHECK(!mpiserve_wait(session, &request, 10, NULL) && found[0] == n && found[1] == 2);
    CHECK(!memcmp(out, expected, (size_t)(2 * n) * sizeof *out));
  }
}

static void simulate(int rank) {
  mpiserve_session *session;
  mpiserve_service *big, *small, *whole;
  mpiserve_description d;
  CHECK(!mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  CHECK(!mpiserve_service_find(session, "images", &big));
  CHECK(!mpiserve_service_describe(big, &d, NULL, NULL, NULL) && d.inputs[0].max_shape[2] == WIDTH);
  test_images(session, big, rank);
  test_room(session, big);
  test_buffers(big);
  CHECK(!mpiserve_service_find(session, "tiny", &small));
  test_tiny(session, small, rank);
  test_values(small);
  CHECK(!mpiserve_service_find(session, "graph", &whole));
  test_graphs(session, whole, rank);
  test_shapes_that_do_not_fit(session, big);
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
