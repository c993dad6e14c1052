/* ranks: 3
 *
 * A service whose model has no room: its requests wait in the queue with all the rules of a
 * queue, while another service of the rank goes on. */
#include <mpi.h>

#include "check.h"
#include "mpiserve.h"

enum { CROWDED, SPARE, SERVICES };
enum { LOW, HIGH, HEAD };                     /* ranks: of two priorities, and the head */
enum { QUEUED = 1, FULL = 2, MAKE_ROOM = 3 }; /* messages: the first two come from the head */
enum { EACH = 2, SPARES = 20 };

static const double LIMIT = 60;

static mpiserve_spec spec(void) {
  return (mpiserve_spec){.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
}

/* ---- the head ------------------------------------------------------------------------- */

typedef struct head {
  mpiserve_session *session;
  int room, announced; /* of the queue: EACH or 2 * EACH rows */
  int batches[SERVICES];
  int32_t clients[2 * EACH]; /* of the batches of the crowded service */
} head;

static void set_room(head *h, int room) {
  CHECK(mpiserve_room_set(h->session, CROWDED, room) == MPISERVE_OK);
  h->room = room;
}

static void answer(head *h, const mpiserve_batch *batch) {
  const double *x = batch->inputs[0];
  double *y = batch->outputs[0];
  int n = h->batches[batch->service]++;
  for (int64_t i = 0; i < batch->rows; i++) y[i] = 2 * x[i];
  if (batch->service == CROWDED) {
    CHECK(h->room && batch->rows == 1 && n < 2 * EACH);
    CHECK(mpiserve_batch_clients(h->session, &h->clients[n % (2 * EACH)]) == MPISERVE_OK);
  }
  CHECK(mpiserve_batch_reply(h->session, (const void *const *)batch->outputs) == MPISERVE_OK);
}

/* The requests of low priority are here, then those of high priority too. */
static void announce(head *h) {
  int64_t rows;
  mpiserve_counters count;
  CHECK(mpiserve_counters_get(h->session, &count) == MPISERVE_OK);
  CHECK(mpiserve_queue_get(h->session, CROWDED, &rows) == MPISERVE_OK);
  if (count.errors < 2) return; /* what nobody wants any more is in the queue */
  if (h->announced == 2 * EACH || rows < h->announced + EACH) return;
  h->announced += EACH;
  MPI_Send(NULL, 0, MPI_BYTE, HIGH, h->announced == EACH ? QUEUED : FULL, MPI_COMM_WORLD);
}

static void make_room(head *h) {
  int flag;
  MPI_Iprobe(HIGH, MAKE_ROOM, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
  if (!flag) return;
  MPI_Recv(NULL, 0, MPI_BYTE, HIGH, MAKE_ROOM, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  set_room(h, 1);
}

static void serve(mpiserve_session *session) {
  mpiserve_description d[SERVICES];
  for (int i = 0; i < SERVICES; i++)
    d[i] = (mpiserve_description){.n_inputs = 1, .n_outputs = 1, .max_batch_rows = 1};
  strcpy(d[CROWDED].name, "crowded");
  strcpy(d[SPARE].name, "spare");
  for (int i = 0; i < SERVICES; i++) d[i].inputs[0] = d[i].outputs[0] = spec();
  d[CROWDED].max_queue_rows = 2 * EACH;
  d[CROWDED].on_full = MPISERVE_REJECT;
  head h = {.session = session};
  mpiserve_batch batch;
  mpiserve_counters count;
  int code;
  CHECK(mpiserve_publish(session, SERVICES, d) == MPISERVE_OK);
  set_room(&h, 0);
  while ((code = mpiserve_batch_next(session, 0, &batch)) != MPISERVE_ECLOSED) {
    if (code == MPISERVE_OK) answer(&h, &batch);
    if (code == MPISERVE_ECHANGE)
      CHECK(mpiserve_change_reply(session, CROWDED, MPISERVE_ESTATE, "as it is") == MPISERVE_OK);
    announce(&h);
    make_room(&h);
  }
  CHECK(h.batches[CROWDED] == 2 * EACH && h.batches[SPARE] == SPARES);
  for (int i = 0; i < 2 * EACH; i++) CHECK(h.clients[i] == (i < EACH ? HIGH : LOW));
  CHECK(mpiserve_counters_get(session, &count) == MPISERVE_OK);
  /* A client cancels what is late by its own clock: the head sees one or the other first. */
  CHECK(count.rejected == 1 && count.dropped + count.cancelled == 2 && count.errors == 3);
}

/* ---- clients --------------------------------------------------------------------------- */

static mpiserve_tensor row_at(double *data) {
  return (mpiserve_tensor){.data = data, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {1}};
}

static mpiserve_request submit(mpiserve_service *service, double *x, double *y, int priority,
                               double deadline) {
  mpiserve_tensor in = row_at(x), out = row_at(y);
  mpiserve_options options = {.deadline = deadline, .priority = priority};
  mpiserve_request request;
  CHECK(mpiserve_submit(service, 1, &in, 1, &out, &options, &request) == MPISERVE_OK);
  return request;
}

static void take(mpiserve_session *session, mpiserve_request *request, const double *x,
                 const double *y) {
  CHECK(mpiserve_wait(session, request, LIMIT, NULL) == MPISERVE_OK);
  CHECK(*y == 2 * *x);
}

static void recv_from_head(int what) {
  MPI_Recv(NULL, 0, MPI_BYTE, HEAD, what, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

/* With a full queue: another request is refused, and the other service answers. */
static void check_crowd(mpiserve_session *session, mpiserve_service *service) {
  mpiserve_service *spare;
  double x = 1, y = 0;
  mpiserve_request more = submit(service, &x, &y, 0, 0);
  CHECK(mpiserve_wait(session, &more, LIMIT, NULL) == MPISERVE_EFULL);
  CHECK(mpiserve_service_find(session, "spare", &spare) == MPISERVE_OK);
  for (int i = 0; i < SPARES; i++) {
    more = submit(spare, &x, &y, 0, 0);
    take(session, &more, &x, &y);
  }
}

/* One whose deadline passes, and one that is cancelled, while there is no room. */
static void check_ends(mpiserve_session *session, mpiserve_service *service) {
  double x = 1, y = 0;
  mpiserve_request late = submit(service, &x, &y, 0, 0.02);
  CHECK(mpiserve_wait(session, &late, LIMIT, NULL) == MPISERVE_EDEADLINE);
  mpiserve_request given_up = submit(service, &x, &y, 0, 0);
  CHECK(mpiserve_wait(session, &given_up, 0.02, NULL) == MPISERVE_ETIMEOUT);
  CHECK(mpiserve_cancel(session, &given_up) == MPISERVE_OK);
}

/* The head is asked for it, room or not. */
static void check_change(mpiserve_session *session) {
  CHECK(mpiserve_reload(session, "crowded", NULL, LIMIT) == MPISERVE_ESTATE);
  CHECK_TEXT(mpiserve_last_error(), "as it is");
}

static void query(mpiserve_session *session, int rank, MPI_Comm comm) {
  double x[EACH] = {1, 2}, y[EACH] = {0};
  mpiserve_request requests[EACH];
  mpiserve_service *service;
  CHECK(mpiserve_service_find(session, "crowded", &service) == MPISERVE_OK);
  if (rank == LOW) check_ends(session, service);
  MPI_Barrier(comm);
  if (rank == HIGH) recv_from_head(QUEUED);
  for (int i = 0; i < EACH; i++)
    requests[i] = submit(service, &x[i], &y[i], rank == HIGH ? 5 : 0, 0);
  if (rank == LOW) check_change(session);
  if (rank == HIGH) {
    recv_from_head(FULL);
    check_crowd(session, service);
    MPI_Send(NULL, 0, MPI_BYTE, HEAD, MAKE_ROOM, MPI_COMM_WORLD);
  }
  for (int i = 0; i < EACH; i++) take(session, &requests[i], &x[i], &y[i]);
}

int main(int argc, char **argv) {
  int level, rank;
  mpiserve_session *session;
  MPI_Comm comm;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  CHECK(mpiserve_open(MPI_COMM_WORLD, rank == HEAD, &session) == MPISERVE_OK);
  CHECK(mpiserve_comm(session, &comm) == MPISERVE_OK);
  if (rank == HEAD)
    serve(session);
  else
    query(session, rank, comm);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  MPI_Finalize();
  return check_result();
}
