/* ranks: 2
 *
 * One simulation rank does everything wrong that it can, and gets the code and the
 * text that mpiserve.h promises; then it asks rightly, and the answer is right. */
#include <math.h>
#include <mpi.h>

#include "check.h"
#include "mpiserve.h"

enum { ROWS = 2, COLUMNS = 3 };

#define EXPECT(call, code, text) \
  do { \
    CHECK((call) == (code)); \
    CHECK_TEXT(mpiserve_last_error(), text); \
  } while (0)

static const char NOT_OPEN[] = "not open: it was closed, or never opened";
static const char ONE_AT_A_TIME[] = "these ranks have one at a time";
static const char NO_REQUEST[] = "no such request: it has ended, or never was";

/* Until the client has seen it. */
static void suspend(mpiserve_session *session) {
  mpiserve_batch batch;
  int64_t rows;
  int seen = 0;
  EXPECT(mpiserve_suspend(session, 2, 1), MPISERVE_EARG, "service 2 of 2");
  EXPECT(mpiserve_queue_get(session, -1, &rows), MPISERVE_EARG, "service -1 of 2");
  EXPECT(mpiserve_queue_get(session, 0, NULL), MPISERVE_EARG, "rows is NULL");
  EXPECT(mpiserve_room_set(session, 2, 0), MPISERVE_EARG, "service 2 of 2");
  EXPECT(mpiserve_rows_set(session, 2, MPISERVE_TOGETHER), MPISERVE_EARG, "service 2 of 2");
  EXPECT(mpiserve_rows_set(session, 0, 2), MPISERVE_EARG, "rows is 2");
  CHECK(mpiserve_rows_set(session, 0, MPISERVE_TOGETHER) == MPISERVE_OK);
  CHECK(mpiserve_rows_set(session, 0, MPISERVE_INDEPENDENT) == MPISERVE_OK);
  CHECK(mpiserve_suspend(session, 0, 1) == MPISERVE_OK);
  while (!seen) {
    CHECK(mpiserve_batch_next(session, 0.001, &batch) == MPISERVE_ETIMEOUT);
    MPI_Iprobe(0, 0, MPI_COMM_WORLD, &seen, MPI_STATUS_IGNORE);
  }
  MPI_Recv(NULL, 0, MPI_BYTE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  CHECK(mpiserve_suspend(session, 0, 0) == MPISERVE_OK);
  MPI_Send(NULL, 0, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
}

static void serve(mpiserve_session *session) {
  mpiserve_description d = {.name = "echo", .n_inputs = 1, .n_outputs = 1, .max_batch_rows = 8};
  d.inputs[0] = d.outputs[0] =
      (mpiserve_spec){.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {-1, COLUMNS}};
  mpiserve_batch batch;
  int ended;
  EXPECT(mpiserve_batch_next(session, 0, &batch), MPISERVE_ESTATE, "has not published");
  EXPECT(mpiserve_suspend(session, 0, 1), MPISERVE_ESTATE, "has not published");
  EXPECT(mpiserve_rows_set(session, 0, 1), MPISERVE_ESTATE, "has not published");
  EXPECT(mpiserve_service_count(session, &ended), MPISERVE_EARG, "for simulation ranks");
  EXPECT(mpiserve_publish(session, 1, NULL), MPISERVE_EARG, "descriptions is NULL");
  EXPECT(mpiserve_publish(session, 0, &d), MPISERVE_EARG, "0 services");
  mpiserve_description twice[] = {d, d}; /* the first is served all the same */
  EXPECT(mpiserve_publish(session, 2, twice), MPISERVE_ECONFIG, "published twice by one rank");
  EXPECT(mpiserve_publish(session, 1, &d), MPISERVE_ESTATE, "published already");
  EXPECT(mpiserve_batch_next(session, 0, NULL), MPISERVE_EARG, "batch is NULL");
  EXPECT(mpiserve_batch_reply(session, NULL), MPISERVE_EARG, "outputs is NULL");
  EXPECT(mpiserve_batch_reply(session, (const void *const *)batch.outputs), MPISERVE_ESTATE,
         "no batch");
  EXPECT(mpiserve_batch_fail(session, 1, "x"), MPISERVE_EARG, "not the code of an error");
  EXPECT(mpiserve_batch_fail(session, -32769, "x"), MPISERVE_EARG, "not the code of an error");
  EXPECT(mpiserve_change_reply(session, 0, 1, "x"), MPISERVE_EARG, "not the code of an error");
  suspend(session);
  mpiserve_engine engine, none = {0};
  EXPECT(mpiserve_engine_load(NULL, NULL, NULL, &engine), MPISERVE_EARG, "description is NULL");
  EXPECT(mpiserve_engine_load(NULL, NULL, &d, NULL), MPISERVE_EARG, "engine is NULL");
  EXPECT(mpiserve_engine_set(session, 0, &none), MPISERVE_EARG, "no function run");
  EXPECT(mpiserve_engine_set(session, 2, NULL), MPISERVE_EARG, "service 2 of 2");
  CHECK(!mpiserve_engine_load(NULL, NULL, &d, &engine));
  CHECK(!mpiserve_engine_set(session, 0, &engine));
  EXPECT(mpiserve_batch_next(session, MPISERVE_FOREVER, &batch), MPISERVE_ECLOSED, "has left");
  CHECK(!mpiserve_engine_set(session, 0, NULL));
  mpiserve_engine_close(&engine);
  mpiserve_engine_close(&engine);
  mpiserve_engine_close(NULL);
}

static mpiserve_tensor tensor(double *data) {
  return (mpiserve_tensor){
      .data = data, .dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {ROWS, COLUMNS}};
}

static void give_wrong_handles(mpiserve_session *session) {
  double never_a_session[512] = {0};
  mpiserve_service *service = NULL;
  mpiserve_tensor x = tensor(never_a_session);
  mpiserve_request request = {0};
  int n;
  EXPECT(mpiserve_service_count(NULL, &n), MPISERVE_EARG, "session is NULL");
  EXPECT(mpiserve_service_count(session, NULL), MPISERVE_EARG, "count is NULL");
  EXPECT(mpiserve_service_count((void *)never_a_session, &n), MPISERVE_ESTATE, NOT_OPEN);
  EXPECT(mpiserve_service_find(session, NULL, &service), MPISERVE_EARG, "name is NULL");
  EXPECT(mpiserve_service_find(session, "none", &service), MPISERVE_ENOTFOUND, "'echo'");
  EXPECT(mpiserve_service_at(session, 1, &service), MPISERVE_EARG, "service 1 of 1");
  EXPECT(mpiserve_infer(NULL, 1, &x, 1, &x, 1, NULL), MPISERVE_EARG, "service is NULL");
  EXPECT(mpiserve_submit((void *)never_a_session, 1, &x, 1, &x, NULL, &request), MPISERVE_ESTATE,
         NOT_OPEN);
  EXPECT(mpiserve_role_of(session, 2, &n), MPISERVE_EARG, "not in a world of 2");
  EXPECT(mpiserve_batch_next(session, 0, NULL), MPISERVE_EARG, "for inference ranks");
  EXPECT(mpiserve_wait(session, &request, 1, NULL), MPISERVE_ESTATE, NO_REQUEST);
  EXPECT(mpiserve_cancel(session, NULL), MPISERVE_EARG, "request is NULL");
}

static void give_wrong_tensors(mpiserve_service *echo) {
  double data[ROWS * COLUMNS] = {0};
  mpiserve_tensor x = tensor(data), bad;
  mpiserve_request request;
#define WRONG(change, code, text) \
  bad = x; \
  change; \
  EXPECT(mpiserve_submit(echo, 1, &bad, 1, &x, NULL, &request), code, text); \
  CHECK(request.id == 0)
  WRONG(bad.ndim = 1, MPISERVE_ESHAPE, "shape is [2], the signature says [rows, 3]");
  WRONG(bad.ndim = 99, MPISERVE_ESHAPE, "of 99 dimensions");
  WRONG(bad.ndim = -1, MPISERVE_ESHAPE, "of -1 dimensions");
  WRONG(bad.shape[1] = 4, MPISERVE_ESHAPE, "[2, 4]");
  WRONG(bad.dtype = MPISERVE_FLOAT32, MPISERVE_EDTYPE, "dtype is float32");
  WRONG(bad.dtype = 77, MPISERVE_EDTYPE, "dtype is unknown");
  WRONG(bad.name = "y", MPISERVE_ENAME, "'y' is unknown");
  WRONG(bad.data = NULL, MPISERVE_EARG, "data is NULL");
  WRONG(bad.shape[0] = 1, MPISERVE_EROWS, "other tensors of the call have more or less");
  WRONG(bad.shape[0] = 0, MPISERVE_EROWS, "at least 1 is needed");
  EXPECT(mpiserve_submit(echo, 0, NULL, 1, &x, NULL, &request), MPISERVE_ESHAPE, "0 inputs given");
  EXPECT(mpiserve_submit(echo, 1, NULL, 1, &x, NULL, &request), MPISERVE_EARG, "is NULL");
  EXPECT(mpiserve_submit(echo, 1, &x, 1, &x, NULL, NULL), MPISERVE_EARG, "request is NULL");
#define UNWANTED(options, text) \
  EXPECT(mpiserve_submit(echo, 1, &x, 1, &x, &(mpiserve_options)options, &request), MPISERVE_EARG, \
         text); \
  CHECK(request.id == 0)
  UNWANTED({.deadline = -1}, "a deadline of -1 s");
  UNWANTED({.deadline = NAN}, "a deadline of");
  UNWANTED({.priority = 101}, "priority 101 is not in -100 to 100");
}

static void end_twice(mpiserve_session *session, mpiserve_service *echo) {
  double in[ROWS * COLUMNS] = {0}, out[ROWS * COLUMNS];
  mpiserve_tensor x = tensor(in), y = tensor(out);
  mpiserve_request request, copy;
  mpiserve_buffer buffer, same;
  int done;
  CHECK(mpiserve_submit(echo, 1, &x, 1, &y, NULL, &request) == MPISERVE_OK);
  copy = request;
  CHECK(mpiserve_wait(session, &request, 60, NULL) == MPISERVE_OK);
  EXPECT(mpiserve_wait(session, &request, 60, NULL), MPISERVE_ESTATE, NO_REQUEST);
  EXPECT(mpiserve_wait(session, &copy, 60, NULL), MPISERVE_ESTATE, NO_REQUEST);
  EXPECT(mpiserve_test(session, &copy, &done, NULL), MPISERVE_ESTATE, NO_REQUEST);
  CHECK(done == 1);
  EXPECT(mpiserve_cancel(session, &copy), MPISERVE_ESTATE, NO_REQUEST);
  EXPECT(mpiserve_buffer_take(echo, 9, &buffer), MPISERVE_EROWS, "1 to max_batch_rows = 8");
  CHECK(mpiserve_buffer_take(echo, 8, &buffer) == MPISERVE_OK);
  same = buffer;
  CHECK(mpiserve_buffer_give(echo, &buffer) == MPISERVE_OK);
  EXPECT(mpiserve_buffer_give(echo, &buffer), MPISERVE_ESTATE, "given back, or never taken");
  EXPECT(mpiserve_buffer_give(echo, &same), MPISERVE_ESTATE, "given back, or never taken");
}

/* What is in flight at close ends, and its outputs are written. */
static void close_with_requests(mpiserve_session *session, mpiserve_service *echo) {
  double in[ROWS * COLUMNS], out[8][ROWS * COLUMNS] = {{0}};
  mpiserve_request requests[8];
  mpiserve_tensor x = tensor(in);
  for (int i = 0; i < ROWS * COLUMNS; i++) in[i] = sqrt(i + 1);
  for (int i = 0; i < 8; i++) {
    mpiserve_tensor y = tensor(out[i]);
    CHECK(mpiserve_submit(echo, 1, &x, 1, &y, NULL, &requests[i]) == MPISERVE_OK);
  }
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  for (int i = 0; i < 8; i++) {
    CHECK(memcmp(out[i], in, sizeof in) == 0);
    EXPECT(mpiserve_wait(session, &requests[i], 1, NULL), MPISERVE_ESTATE, NOT_OPEN);
  }
}

static void query_suspended(mpiserve_session *session, mpiserve_service *echo) {
  double data[ROWS * COLUMNS] = {0};
  mpiserve_tensor x = tensor(data);
  EXPECT(mpiserve_suspend(session, 0, 1), MPISERVE_EARG, "for inference ranks");
  EXPECT(mpiserve_infer(echo, 1, &x, 1, &x, MPISERVE_FOREVER, NULL), MPISERVE_EMODEL,
         "is suspended at its only replica, rank 1");
  MPI_Send(NULL, 0, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
  MPI_Recv(NULL, 0, MPI_BYTE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

static void simulate(mpiserve_session *session) {
  mpiserve_service *echo;
  CHECK(mpiserve_service_find(session, "echo", &echo) == MPISERVE_OK);
  query_suspended(session, echo);
  give_wrong_handles(session);
  give_wrong_tensors(echo);
  end_twice(session, echo);
  close_with_requests(session, echo);

  double data[ROWS * COLUMNS];
  mpiserve_tensor x = tensor(data);
  MPI_Comm comm;
  EXPECT(mpiserve_infer(echo, 1, &x, 1, &x, 1, NULL), MPISERVE_ESTATE, NOT_OPEN);
  EXPECT(mpiserve_service_describe(echo, NULL, NULL, NULL, NULL), MPISERVE_ESTATE, NOT_OPEN);
  EXPECT(mpiserve_comm(session, &comm), MPISERVE_ESTATE, NOT_OPEN);
  EXPECT(mpiserve_fail(session, "x"), MPISERVE_ESTATE, NOT_OPEN);
}

/* At once, on each rank: nobody waits for the others. */
static void open_again(mpiserve_session *session, MPI_Comm twin, int role) {
  mpiserve_session *kept = session, *other = NULL;
  EXPECT(mpiserve_open(MPI_COMM_WORLD, role, &kept), MPISERVE_ESTATE, ONE_AT_A_TIME);
  CHECK(kept == session);
  EXPECT(mpiserve_open(twin, role, &other), MPISERVE_ESTATE, ONE_AT_A_TIME);
  EXPECT(mpiserve_open_failed(twin, role, MPISERVE_ECONFIG, "x"), MPISERVE_ESTATE, ONE_AT_A_TIME);
  CHECK(!other);
  EXPECT(mpiserve_open(MPI_COMM_SELF, role, &other), MPISERVE_ECONFIG, "at least one");
}

int main(int argc, char **argv) {
  int provided, rank, role = MPISERVE_SIMULATION;
  mpiserve_session *session = NULL;
  MPI_Comm twin;
  EXPECT(mpiserve_open(MPI_COMM_WORLD, role, &session), MPISERVE_ESTATE, "MPI is not running");
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  EXPECT(mpiserve_open(MPI_COMM_NULL, role, &session), MPISERVE_EARG, "world is MPI_COMM_NULL");
  EXPECT(mpiserve_open(MPI_COMM_WORLD, 4, &session), MPISERVE_EARG, "4 is no role");
  EXPECT(mpiserve_open(MPI_COMM_WORLD, role, NULL), MPISERVE_EARG, "session is NULL");
  role = rank ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  MPI_Comm_dup(MPI_COMM_WORLD, &twin);
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) {
    printf("open: %s\n", mpiserve_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  open_again(session, twin, role);
  if (role == MPISERVE_SIMULATION) {
    simulate(session);
  } else {
    serve(session);
    CHECK(mpiserve_close(session) == MPISERVE_OK);
  }
  EXPECT(mpiserve_close(session), MPISERVE_ESTATE, NOT_OPEN);
  CHECK(mpiserve_close(NULL) == MPISERVE_OK);
  MPI_Comm_free(&twin);
  MPI_Finalize();
  EXPECT(mpiserve_open(MPI_COMM_WORLD, role, &session), MPISERVE_ESTATE, "MPI is not running");
  return check_result();
}
