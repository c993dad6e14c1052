/* ranks: 4
 *
 * What requests do to the rows that others need: rows that are named twice, rows that a request
 * leaves behind when its deadline passes, rows that a cancelled one still holds, and rows that a
 * client waits for. */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "mpiserve.h"

enum { COLUMNS = 100, ROWS = 100, POOL_ROWS = 200, ROUNDS = 100, DELAY_NS = 100000000 };
enum { MERGE, SLOW, CROWDED, SERVICES }; /* services of the head */

static const char *const NAMES[SERVICES] = {"merge", "slow", "crowded"};
static const float NOBODYS = -5,
                   MINE = 777; /* rows that no request names; what is not the head's */
static int client;

/* ---- the head ---------------------------------------------------------------------- */

static mpiserve_description describe(int service, int64_t max_delay_ns) {
  mpiserve_description d = {.n_inputs = 1, .n_outputs = 1, .max_batch_rows = ROWS};
  snprintf(d.name, sizeof d.name, "%s", NAMES[service]);
  d.inputs[0] = d.outputs[0] =
      (mpiserve_spec){.name = "x", .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {-1, COLUMNS}};
  d.max_delay_ns = max_delay_ns;
  d.pool_bytes = service == MERGE ? 0 : POOL_ROWS * 2 * COLUMNS * (int64_t)sizeof(float);
  return d;
}

static void answer(mpiserve_session *session, const mpiserve_batch *batch) {
  const float *x = batch->inputs[0];
  float *y = batch->outputs[0];
  int wrong = 0;
  if (batch->service == SLOW && batch->rows < ROWS) usleep(200000);
  for (int64_t i = 0; i < batch->rows * COLUMNS; i++) {
    wrong |= x[i] < 0;
    y[i] = 2 * x[i];
  }
  if (wrong)
    mpiserve_batch_fail(session, MPISERVE_EMODEL, "a row that nobody has submitted");
  else
    mpiserve_batch_reply(session, (const void *const *)batch->outputs);
}

static void serve(mpiserve_session *session) {
  mpiserve_description all[SERVICES];
  for (int i = 0; i < SERVICES; i++) all[i] = describe(i, i == SLOW ? 0 : DELAY_NS);
  CHECK(mpiserve_publish(session, SERVICES, all) == MPISERVE_OK);
  mpiserve_batch batch;
  mpiserve_counters count;
  int code;
  while ((code = mpiserve_batch_next(session, 0.5, &batch)) != MPISERVE_ECLOSED)
    if (code == MPISERVE_OK) answer(session, &batch);
  CHECK(mpiserve_counters_get(session, &count) == MPISERVE_OK);
  /* The census waits 8 times for the client that keeps rows and sends nothing, and for no other. */
  CHECK(count.closed_by_delay < ROUNDS / 4);
}

/* ---- clients ------------------------------------------------------------------------ */

static mpiserve_tensor rows_at(float *data, int64_t rows) {
  return (mpiserve_tensor){
      .data = data, .dtype = MPISERVE_FLOAT32, .ndim = 2, .shape = {rows, COLUMNS}};
}

static void fill(float *at, int64_t rows, float value) {
  for (int64_t i = 0; i < rows * COLUMNS; i++) at[i] = value;
}

static int all_are(const float *at, int64_t rows, float value) {
  for (int64_t i = 0; i < rows * COLUMNS; i++)
    if (at[i] != value) return 0;
  return 1;
}

static mpiserve_request submit(mpiserve_service *service, float *x, float *y, int64_t rows,
                               double deadline) {
  mpiserve_tensor in = rows_at(x, rows), out = rows_at(y, rows);
  mpiserve_options options = {.deadline = deadline};
  mpiserve_request request = {0};
  CHECK(mpiserve_submit(service, 1, &in, 1, &out, &options, &request) == MPISERVE_OK);
  return request;
}

/* Rows 0 to 9 twice and 20 to 29 once are 30 rows in 30, but not one range. */
static void name_rows_twice(mpiserve_session *session, mpiserve_service *service) {
  mpiserve_buffer in, out;
  CHECK(mpiserve_buffer_take(service, 30, &in) == MPISERVE_OK);
  CHECK(mpiserve_buffer_take(service, 30, &out) == MPISERVE_OK);
  float *x = in.inputs[0], *y = out.outputs[0];
  fill(x, 30, NOBODYS);
  fill(x, 10, 1);
  fill(x + 20 * COLUMNS, 10, 3);
  mpiserve_request requests[] = {submit(service, x, y, 10, 0),
                                 submit(service, x, y + 10 * COLUMNS, 10, 0),
                                 submit(service, x + 20 * COLUMNS, y + 20 * COLUMNS, 10, 0)};
  for (int i = 0; i < 3; i++) CHECK(mpiserve_wait(session, &requests[i], 60, NULL) == MPISERVE_OK);
  CHECK(all_are(y, 20, 2) && all_are(y + 20 * COLUMNS, 10, 6));
  mpiserve_buffer_give(service, &in);
  mpiserve_buffer_give(service, &out);
}

/* The second one gets rows that are lent, and ends unsent with them: the third one needs them. */
static void miss_a_deadline(mpiserve_session *session, mpiserve_service *slow) {
  static float x[ROWS * COLUMNS], y[3][ROWS * COLUMNS];
  mpiserve_buffer buffer;
  fill(x, ROWS, 1);
  CHECK(mpiserve_buffer_take(slow, 60, &buffer) == MPISERVE_OK);
  mpiserve_request first = submit(slow, x, y[0], 1, 0);
  usleep(50000);
  mpiserve_request late = submit(slow, x, y[1], ROWS, 0.05);
  mpiserve_request last = submit(slow, x, y[2], ROWS, 0);
  mpiserve_stats stats = {.rows = -1, .batch_rows = -1};
  CHECK(mpiserve_wait(session, &last, 30, NULL) == MPISERVE_OK);
  CHECK(mpiserve_wait(session, &late, 30, &stats) == MPISERVE_EDEADLINE);
  CHECK(stats.batch_rows == 0 && stats.queue_ns == 0 && stats.compute_ns == 0);
  CHECK(mpiserve_wait(session, &first, 30, NULL) == MPISERVE_OK);
  CHECK(all_are(y[0], 1, 2) && all_are(y[2], ROWS, 2));
  mpiserve_buffer_give(slow, &buffer);
}

/* The head goes on with 10 rows for 0.2 s. Nobody else writes to memory of the caller's, nor to
 * a buffer that was taken after the one that the request used was given back. */
static void cancel(mpiserve_session *session, mpiserve_service *slow, int in_place) {
  static float mine[2][10 * COLUMNS];
  float *x = mine[0], *y = mine[1];
  mpiserve_buffer old, new;
  if (in_place) {
    CHECK(mpiserve_buffer_take(slow, 10, &old) == MPISERVE_OK);
    x = old.inputs[0], y = old.outputs[0];
  }
  fill(x, 10, 1);
  mpiserve_request request = submit(slow, x, y, 10, 0);
  usleep(50000);
  CHECK(mpiserve_cancel(session, &request) == MPISERVE_OK && !request.id);
  if (in_place) {
    CHECK(mpiserve_buffer_give(slow, &old) == MPISERVE_OK);
    CHECK(mpiserve_buffer_take(slow, 10, &new) == MPISERVE_OK);
    x = new.inputs[0], y = new.outputs[0];
  }
  fill(y, 10, MINE);
  usleep(300000);
  CHECK(all_are(y, 10, MINE));
  fill(x, 10, 2);
  request = submit(slow, x, y, 10, 0);
  CHECK(mpiserve_wait(session, &request, 60, NULL) == MPISERVE_OK && all_are(y, 10, 4));
  if (in_place) mpiserve_buffer_give(slow, &new);
}

/* One client keeps rows; there is room for the rows of one of the others at a time. Batches do
 * not wait for the one that has no rows. */
static void crowd(mpiserve_service *service, MPI_Comm comm) {
  static float x[60 * COLUMNS], y[60 * COLUMNS];
  mpiserve_buffer buffer;
  mpiserve_tensor in = rows_at(x, 60), out = rows_at(y, 60);
  fill(x, 60, 1);
  if (client == 0) CHECK(mpiserve_buffer_take(service, 90, &buffer) == MPISERVE_OK);
  MPI_Barrier(comm);
  for (int i = 0; i < ROUNDS && client; i++)
    CHECK(mpiserve_infer(service, 1, &in, 1, &out, 60, NULL) == MPISERVE_OK);
  MPI_Barrier(comm);
  if (client == 0) mpiserve_buffer_give(service, &buffer);
}

static void simulate(mpiserve_session *session) {
  mpiserve_service *services[SERVICES];
  MPI_Comm comm;
  mpiserve_comm(session, &comm);
  MPI_Comm_rank(comm, &client);
  for (int i = 0; i < SERVICES; i++)
    CHECK(mpiserve_service_find(session, NAMES[i], &services[i]) == MPISERVE_OK);
  MPI_Barrier(comm);
  if (client == 0) name_rows_twice(session, services[MERGE]);
  if (client == 0) miss_a_deadline(session, services[SLOW]);
  if (client == 0) cancel(session, services[SLOW], 0);
  if (client == 0) cancel(session, services[SLOW], 1);
  MPI_Barrier(comm);
  crowd(services[CROWDED], comm);
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank == 3 ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  CHECK(mpiserve_open(MPI_COMM_WORLD, role, &session) == MPISERVE_OK);
  if (check_failures) MPI_Abort(MPI_COMM_WORLD, 1);
  if (role == MPISERVE_INFERENCE)
    serve(session);
  else
    simulate(session);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  MPI_Finalize();
  return check_result();
}
