/* Doubles for models that compute in float32, three requests at a time: one of them overflows. */
#include <complex.h>
#include <math.h>
#include <mpiserve.h>
#include <stdio.h>

enum { ROWS = 5, COLUMNS = 3, N = ROWS * COLUMNS, REQUESTS = 3 };

static int failures;

static void check(int right, const char *what) {
  if (!right) printf("wrong: %s\n", what);
  failures += !right;
}

static int submit(mpiserve_service *service, int dtype, void *x, void *y, mpiserve_request *r) {
  mpiserve_tensor in = {"x", x, dtype, 2, {ROWS, COLUMNS}},
                  out = {"y", y, dtype, 2, {ROWS, COLUMNS}};
  return mpiserve_submit(service, 1, &in, 1, &out, NULL, r);
}

static void ask_doubles(mpiserve_session *session) {
  double x[REQUESTS][N], y[REQUESTS][N];
  mpiserve_service *service;
  mpiserve_request requests[REQUESTS];
  check(!mpiserve_service_find(session, "twice", &service), "find twice");
  for (int r = 0; r < REQUESTS; r++)
    for (int i = 0; i < N; i++) x[r][i] = (i - 7.0) / (3 + r);
  x[1][4] = -1e39;
  x[2][0] = INFINITY, x[2][1] = NAN, x[2][2] = 1e-40, x[2][3] = 1e-300;
  for (int r = 0; r < REQUESTS; r++)
    check(!submit(service, MPISERVE_FLOAT64, x[r], y[r], &requests[r]), "submit");
  for (int r = 0; r < REQUESTS; r++) {
    int code = mpiserve_wait(session, &requests[r], 60, NULL);
    check(code == (r == 1 ? MPISERVE_EMODEL : MPISERVE_OK), "the code of a request");
    if (code) printf("%s\n", mpiserve_last_error());
    for (int i = 0; i < N && !code; i++) {
      double want = 2.0F * (float)x[r][i];
      check(y[r][i] == want || (isnan(want) && isnan(y[r][i])), "a double");
    }
  }
  check(y[2][2] > 0 && y[2][3] == 0, "small numbers");
}

static void ask_complex(mpiserve_session *session) {
  double _Complex z[N], w[N];
  mpiserve_service *service;
  mpiserve_request request;
  check(!mpiserve_service_find(session, "turned", &service), "find turned");
  for (int i = 0; i < N; i++) z[i] = i / 3.0 - (i * i + 1) / 7.0 * I;
  check(!submit(service, MPISERVE_COMPLEX128, z, w, &request), "submit");
  check(!mpiserve_wait(session, &request, 60, NULL), mpiserve_last_error());
  for (int i = 0; i < N; i++) {
    float re = (float)creal(z[i]), im = (float)cimag(z[i]);
    check(creal(w[i]) == -im && cimag(w[i]) == re, "a complex number");
  }
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  MPI_Init(&argc, &argv);
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session)) return 1;
  ask_doubles(session);
  ask_complex(session);
  check(!mpiserve_close(session), "close");
  MPI_Finalize();
  if (!failures) printf("right\n");
  return failures > 0;
}
