/* Pass several tensors, by name in any order or by position, and print the error of a mistake. */
#include <mpiserve.h>
#include <stdio.h>

enum { ROWS = 2 };

static void check(int code) {
  if (code == MPISERVE_OK) return;
  fprintf(stderr, "%s: %s\n", mpiserve_strerror(code), mpiserve_last_error());
  MPI_Abort(MPI_COMM_WORLD, 1);
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *gas;
  MPI_Comm comm;
  int rank;
  double temperature[ROWS], density[ROWS];
  float fractions[ROWS][3], flux[ROWS][3];
  int32_t phase[ROWS];
  int64_t wrong[ROWS] = {0, 1};

  MPI_Init(&argc, &argv);
  check(mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session));
  check(mpiserve_comm(session, &comm));
  MPI_Comm_rank(comm, &rank);
  check(mpiserve_service_find(session, "gas", &gas));
  for (int row = 0; row < ROWS; row++) {
    temperature[row] = 200.0 + 100 * (rank + row);
    phase[row] = row;
    for (int k = 0; k < 3; k++) fractions[row][k] = (float)(3 * row + k + rank);
  }

  mpiserve_tensor by_name[] = {{"phase", phase, MPISERVE_INT32, 1, {ROWS}},
                               {"temperature", temperature, MPISERVE_FLOAT64, 1, {ROWS}},
                               {"fractions", fractions, MPISERVE_FLOAT32, 2, {ROWS, 3}}};
  mpiserve_tensor by_position[] = {{NULL, temperature, MPISERVE_FLOAT64, 1, {ROWS}},
                                   {NULL, fractions, MPISERVE_FLOAT32, 2, {ROWS, 3}},
                                   {NULL, wrong, MPISERVE_INT64, 1, {ROWS}}};
  mpiserve_tensor outputs[] = {{"flux", flux, MPISERVE_FLOAT32, 2, {ROWS, 3}},
                               {"density", density, MPISERVE_FLOAT64, 1, {ROWS}}};
  check(mpiserve_infer(gas, 3, by_name, 2, outputs, 60, NULL));
  for (int row = 0; row < ROWS; row++)
    printf("rank %d, row %d: density %.4f, flux %.2f %.2f %.2f\n", rank, row, density[row],
           flux[row][0], flux[row][1], flux[row][2]);

  /* A mistake is found before anything is sent, and the service goes on. */
  if (mpiserve_infer(gas, 3, by_position, 2, outputs, 60, NULL) == MPISERVE_EDTYPE)
    printf("rank %d: %s\n", rank, mpiserve_last_error());
  by_position[2] = (mpiserve_tensor){NULL, phase, MPISERVE_INT32, 1, {ROWS}};
  check(mpiserve_infer(gas, 3, by_position, 2, outputs, 60, NULL));
  check(mpiserve_close(session));
  return MPI_Finalize();
}
