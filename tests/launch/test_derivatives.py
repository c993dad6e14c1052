"""Clients in Python and C share batches of a derivative, which runs in a child process."""

import sys

import pytest
from coupling import SERVE, compile_simulation

MODEL = """\
import torch


class Cube(torch.nn.Module):
    def forward(self, x):
        return x**3


def build():
    return Cube()
"""

CONFIG = """\
[service.cube]
backend = "torch"
model = "model:build"
inputs = [{ name = "x", dtype = "float64", shape = [-1, 2] }]
outputs = [{ name = "y", dtype = "float64", shape = [-1, 2] }]
derivatives = ["vjp"]
rows = "independent"
max_batch_rows = 8
max_delay_us = 5000000  # so that a batch closes when both clients have submitted
"""

# Both ask for v = (1, 10) at x = (rank + 1, 2), and print y, v J = 3 v x^2, and their batch.
PYTHON = """\
import numpy as np
import mpiserve
from mpi4py import MPI

with mpiserve.open() as session:
    service = session.service("cube.vjp")
    session.comm.Barrier()
    request = service.submit(np.array([[session.comm.rank + 1.0, 2]]), np.array([[1.0, 10]]))
    y, product = request.result(timeout=60)
    values = " ".join(f"{value:g}" for value in (*y[0], *product[0]))
    print(session.comm.rank, values, request.stats["batch_requests"])
"""

C = """\
#include <mpi.h>
#include <mpiserve.h>
#include <stdio.h>

int main(void) {
  mpiserve_session *session;
  mpiserve_service *service;
  mpiserve_stats stats;
  MPI_Comm comm;
  int rank, code;
  double x[2] = {0, 2}, v[2] = {1, 10}, y[2], product[2];
  mpiserve_tensor row = {.dtype = MPISERVE_FLOAT64, .ndim = 2, .shape = {1, 2}};
  mpiserve_tensor in[2] = {row, row}, out[2] = {row, row};
  MPI_Init(NULL, NULL);
  code = mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session);
  if (!code) code = mpiserve_comm(session, &comm);
  if (!code) code = mpiserve_service_find(session, "cube.vjp", &service);
  if (code) return fprintf(stderr, "%s\\n", mpiserve_last_error()), 1;
  MPI_Comm_rank(comm, &rank);
  x[0] = rank + 1;
  in[0].data = x, in[1].data = v, out[0].data = y, out[1].data = product;
  MPI_Barrier(comm);
  code = mpiserve_infer(service, 2, in, 2, out, 60, &stats);
  if (code) return fprintf(stderr, "%s\\n", mpiserve_last_error()), 1;
  printf("%d %g %g %g %g %d\\n", rank, y[0], y[1], product[0], product[1],
         (int)stats.batch_requests);
  mpiserve_close(session);
  return MPI_Finalize();
}
"""


@pytest.mark.takes_long
def test_python_and_c_share_a_batch(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "sim.py").write_text(PYTHON)
    (tmp_path / "sim.c").write_text(C)
    program = compile_simulation(tmp_path / "sim.c")
    job = ["-n", 1, sys.executable, "sim.py", ":", "-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"]
    done = mpiexec(job, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:2]) == ["0 1 8 3 120 2", "1 8 8 12 120 2"]
