/* Every simulation rank queries a service with three temperatures. */
#include <mpiserve.h>
#include <stdio.h>

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *service;
  MPI_Comm comm;
  int rank, code;
  float celsius[3] = {-40, 0, 100}, fahrenheit[3];

  MPI_Init(&argc, &argv);
  code = mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session);
  if (!code) code = mpiserve_comm(session, &comm);
  if (!code) code = mpiserve_service_find(session, "fahrenheit", &service);
  if (!code) {
    MPI_Comm_rank(comm, &rank);
    for (int i = 0; i < 3; i++) celsius[i] += rank;
    mpiserve_tensor in = {"celsius", celsius, MPISERVE_FLOAT32, 2, {3, 1}};
    mpiserve_tensor out = {"fahrenheit", fahrenheit, MPISERVE_FLOAT32, 2, {3, 1}};
    code = mpiserve_infer(service, 1, &in, 1, &out, MPISERVE_FOREVER, NULL);
  }
  if (code) {
    fprintf(stderr, "%s: %s\n", mpiserve_strerror(code), mpiserve_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  for (int i = 0; i < 3; i++)
    printf("rank %d: %6.1f C is %6.1f F\n", rank, celsius[i], fahrenheit[i]);
  mpiserve_close(session);
  return MPI_Finalize();
}
