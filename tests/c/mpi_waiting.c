/* ranks: 3
 *
 * A head that nobody asks says whom it waits for, and why that may be: before the first request,
 * after the last one, and when one of two clients has left. Texts are cut between characters. */
#define _POSIX_C_SOURCE 200809L
#include <mpi.h>
#include <stdlib.h>

#include "check.h"
#include "mpiserve.h"

enum { CLIENTS = 2, HEAD = CLIENTS, GO = 1 };

static const double LIMIT = 60;

/* ---- the inference rank -------------------------------------------------------------------- */

/* Waits in vain until it is told why; ETIMEOUT has the same text. Nobody waits for less. */
static void until(mpiserve_session *session, int wanted, const char *part, const char *ranks) {
  char text[MPISERVE_TEXT_SIZE];
  mpiserve_batch batch;
  int why, code;
  double begin = MPI_Wtime();
  do {
    CHECK((code = mpiserve_batch_next(session, 0.02, &batch)) == MPISERVE_ETIMEOUT);
    CHECK_TEXT(mpiserve_last_error(), "no batch within 0.02 s");
    CHECK(mpiserve_waiting_get(session, &why, text) == MPISERVE_OK);
    CHECK((why == MPISERVE_WAITS_NOT) == !text[0]);
  } while (code == MPISERVE_ETIMEOUT && why != wanted && MPI_Wtime() - begin < LIMIT);
  CHECK(why == wanted);
  CHECK_TEXT(text, part);
  CHECK_TEXT(text, ranks);
  CHECK(mpiserve_batch_next(session, 0.02, &batch) == MPISERVE_ETIMEOUT);
  CHECK_TEXT(mpiserve_last_error(), part);
  CHECK(mpiserve_waiting_get(session, &why, NULL) == MPISERVE_OK && why == wanted);
}

/* Fails the one request of a client with a text that is longer than a reply. */
static void fail_next(mpiserve_session *session) {
  char text[1000] = "x";
  mpiserve_batch batch;
  int why, code;
  for (size_t n = 1; n + 3 < sizeof text; n += 3) memcpy(text + n, "\xe2\x98\x83", 4);
  while ((code = mpiserve_batch_next(session, LIMIT, &batch)) == MPISERVE_ETIMEOUT) {
  }
  CHECK(code == MPISERVE_OK);
  CHECK(mpiserve_waiting_get(session, &why, NULL) == MPISERVE_OK && why == MPISERVE_WAITS_NOT);
  CHECK(mpiserve_batch_fail(session, MPISERVE_EMODEL, text) == MPISERVE_OK);
}

static void tell(int client) { MPI_Send(NULL, 0, MPI_BYTE, client, GO, MPI_COMM_WORLD); }

static void serve(mpiserve_session *session, const mpiserve_spec *spec) {
  mpiserve_description d = {.name = "mute",
                            .n_inputs = 1,
                            .n_outputs = 1,
                            .inputs = {*spec},
                            .outputs = {*spec},
                            .max_batch_rows = 8};
  mpiserve_batch batch;
  int why, code;
  CHECK(mpiserve_waiting_get(session, &why, NULL) == MPISERVE_ESTATE);
  CHECK(mpiserve_publish(session, 1, &d) == MPISERVE_OK);
  CHECK(mpiserve_waiting_get(session, NULL, NULL) == MPISERVE_EARG);
  until(session, MPISERVE_WAITS_TO_BEGIN,
        "no request yet; does the simulation use MPI_COMM_WORLD without libmpiserve_world.so?",
        "this rank waits for simulation ranks 0, 1");
  tell(0);
  fail_next(session);
  until(session, MPISERVE_WAITS_ON,
        "no request any more: the program computes, or waits for something; this rank waits for",
        "simulation ranks 0, 1");
  tell(0);
  until(session, MPISERVE_WAITS_TO_LEAVE,
        "and 1 others have: the program computes, or waits for something",
        "simulation rank 1 has not left the session, and 1 others have");
  tell(1);
  while ((code = mpiserve_batch_next(session, LIMIT, &batch)) == MPISERVE_ETIMEOUT) {
  }
  CHECK(code == MPISERVE_ECLOSED);
}

/* ---- simulation ranks ------------------------------------------------------------------- */

static void simulate(mpiserve_session *session, int rank) {
  mpiserve_service *service;
  double x = 1, y;
  mpiserve_tensor in = {.data = &x, .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {1}}, out = in;
  out.data = &y;
  int why;
  CHECK(mpiserve_waiting_get(session, &why, NULL) == MPISERVE_EARG); /* of the other role */
  MPI_Recv(NULL, 0, MPI_BYTE, HEAD, GO, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  if (rank) return;
  CHECK(mpiserve_service_find(session, "mute", &service) == MPISERVE_OK);
  CHECK(mpiserve_infer(service, 1, &in, 1, &out, LIMIT, NULL) == MPISERVE_EMODEL);
  const char *text = mpiserve_last_error();
  CHECK(strlen(text) > 400 && strlen(text) % 3 == 1); /* whole characters of 3 bytes */
  MPI_Recv(NULL, 0, MPI_BYTE, HEAD, GO, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

int main(int argc, char **argv) {
  int provided, rank;
  mpiserve_session *session;
  mpiserve_spec spec = {.name = "x", .dtype = MPISERVE_FLOAT64, .ndim = 1, .shape = {-1}};
  setenv("MPISERVE_WAIT_NOTICE", "0.1", 1);
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int role = rank == HEAD ? MPISERVE_INFERENCE : MPISERVE_SIMULATION;
  if (mpiserve_open(MPI_COMM_WORLD, role, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  if (role == MPISERVE_SIMULATION)
    simulate(session, rank);
  else
    serve(session, &spec);
  CHECK(mpiserve_close(session) == MPISERVE_OK);
  MPI_Finalize();
  return check_result();
}
