/* Compute while the model runs: submit, compute, test now and then, fetch the result. */
#include <mpiserve.h>
#include <stdio.h>
#include <stdlib.h>

enum { SLICES = 20, TERMS = 400000 };

static void check(int code) {
  if (code == MPISERVE_OK) return;
  fprintf(stderr, "%s: %s\n", mpiserve_strerror(code), mpiserve_last_error());
  MPI_Abort(MPI_COMM_WORLD, 1);
}

/* One slice of the simulation's own work: some terms of pi squared over six. */
static double work(int at) {
  double sum = 0;
  for (int k = at * TERMS + 1; k <= (at + 1) * TERMS; k++) sum += 1 / ((double)k * k);
  return sum;
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *square;
  mpiserve_request pending;
  MPI_Comm comm;
  int rank, done = 0, code = MPISERVE_OK;
  double x[3], y[3], expected = 0, total = 0;

  MPI_Init(&argc, &argv);
  check(mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  check(mpiserve_comm(session, &comm));
  MPI_Comm_rank(comm, &rank);
  check(mpiserve_service_find(session, "square", &square));
  for (int i = 0; i < 3; i++) x[i] = rank + i;
  mpiserve_tensor in = {"x", x, MPISERVE_FLOAT64, 1, {3}}, out = {"y", y, MPISERVE_FLOAT64, 1, {3}};

  MPI_Barrier(comm);
  double begin = MPI_Wtime();
  check(mpiserve_infer(square, 1, &in, 1, &out, 60, NULL));
  for (int at = 0; at < SLICES; at++) expected += work(at);
  double in_turn = MPI_Wtime() - begin;

  MPI_Barrier(comm);
  begin = MPI_Wtime();
  check(mpiserve_submit(square, 1, &in, 1, &out, NULL, &pending));
  for (int at = 0; at < SLICES; at++) {
    total += work(at);
    if (!done) code = mpiserve_test(session, &pending, &done, NULL); /* takes 0.1 us */
  }
  check(done ? code : mpiserve_wait(session, &pending, 60, NULL));
  double overlapped = MPI_Wtime() - begin;

  if (total != expected) fprintf(stderr, "rank %d: the sums differ\n", rank);
  printf("rank %d:%6.1f%6.1f%6.1f, own sum %.6f\n", rank, y[0], y[1], y[2], total);
  fprintf(stderr, "rank %d: %.3f s in turn, %.3f s overlapped\n", rank, in_turn, overlapped);
  check(mpiserve_close(session));
  return MPI_Finalize();
}
