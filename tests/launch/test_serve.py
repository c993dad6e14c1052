"""Two programs in one world: a simulation of its own, and `python -m mpiserve serve CONFIG`."""

from __future__ import annotations

import os

import pytest
from coupling import (
    CONFIG,
    PYTHON,
    SERVE,
    SIMULATION,
    compile_simulation,
    first_is_quick,
    is_mpich,
    lines,
    right,
    write,
)

REPLICAS = CONFIG + "replicas = 2\n"
LEVEL = "MPIR_CVAR_DEFAULT_THREAD_LEVEL"

# mpi4py asks for MPI_THREAD_MULTIPLE when nobody tells it otherwise.
MULTIPLE = """\
from mpi4py import MPI

assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
"""

REFUSED = """\
from mpi4py import MPI

import mpiserve

try:
    mpiserve.open()
except mpiserve.Error as error:
    print(f"{error.code.name}: {error}", flush=True)
"""

FINDS = """\
import mpiserve

with mpiserve.open() as session:
    try:
        session.service("twice")
    except mpiserve.Error as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""

# What a simulation does that knows nothing of threads.
PLAIN_C = r"""
#include <mpiserve.h>
#include <stdio.h>

enum { MOST = 50 };

static int fail(const char *call) {
  fprintf(stderr, "%s: %s\n", call, mpiserve_last_error());
  return MPI_Abort(MPI_COMM_WORLD, 1);
}

static int wrong(mpiserve_service *service, int rank, int rows) {
  float x[MOST][3], y[MOST][3];
  int differ = 0;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < 3; j++) x[i][j] = (float)(100 * rank + 10 * i + j);
  mpiserve_tensor in = {"x", x, MPISERVE_FLOAT32, 2, {rows, 3}};
  mpiserve_tensor out = {NULL, y, MPISERVE_FLOAT32, 2, {rows, 3}};
  if (mpiserve_infer(service, 1, &in, 1, &out, 30.0, NULL)) return fail("mpiserve_infer");
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < 3; j++) differ += y[i][j] != 2 * x[i][j];
  return differ;
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *service;
  MPI_Comm comm;
  int rank, size, differ = 0;
  MPI_Init(&argc, &argv);
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session)) return fail("mpiserve_open");
  if (mpiserve_comm(session, &comm)) return fail("mpiserve_comm");
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  if (mpiserve_service_find(session, "twice", &service)) return fail("mpiserve_service_find");
  for (int rows = 1; rows <= MOST; rows++) differ += wrong(service, rank, rows);
  if (mpiserve_close(session)) return fail("mpiserve_close");
  if (!differ) printf("simulation rank %d of %d is right\n", rank, size);
  MPI_Finalize();
  return differ != 0;
}
"""


@pytest.mark.takes_long
@pytest.mark.every_mpi
def test_simulation_ranks_behind_the_inference_ranks(mpiexec, tmp_path):
    write(tmp_path, config=REPLICAS)
    done = mpiexec(["-n", 2, *SERVE, "c.toml", ":", "-n", 3, PYTHON, "sim.py"])
    assert done.returncode == 0
    assert lines(done.stdout) == right(3)


@pytest.mark.takes_long
def test_simulation_ranks_between_the_inference_ranks(mpiexec, tmp_path):
    write(tmp_path, config=REPLICAS)
    simulation, serve = ["-n", 1, PYTHON, "sim.py"], ["-n", 1, *SERVE, "c.toml"]
    both = [*simulation, ":", *serve, ":"]
    done = mpiexec([*both, *both, *simulation])
    assert done.returncode == 0
    assert lines(done.stdout) == right(3)


@pytest.mark.parametrize("order", first_is_quick(["between", "before", "behind"]))
def test_a_c_simulation_that_calls_plain_mpi_init(mpiexec, tmp_path, order):
    write(tmp_path, config=REPLICAS if order == "between" else CONFIG)
    (tmp_path / "plain.c").write_text(PLAIN_C)
    program, serve = compile_simulation(tmp_path / "plain.c"), ["-n", 1, *SERVE, "c.toml"]
    worlds = {
        "before": ["-n", 3, program, ":", *serve],
        "behind": [*serve, ":", "-n", 3, program],
        "between": [*serve, ":", "-n", 2, program, ":", *serve, ":", "-n", 1, program],
    }
    done = mpiexec(worlds[order])
    assert done.returncode == 0
    assert lines(done.stdout) == right(3)


@pytest.mark.takes_long
@pytest.mark.every_mpi
def test_a_simulation_at_another_thread_level(mpiexec, tmp_path):
    """MPICH would corrupt its messages, so it is refused there; Open MPI mixes levels well."""
    write(tmp_path, REFUSED if is_mpich() else MULTIPLE + SIMULATION)
    done = mpiexec(["-n", 2, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"])
    if is_mpich():
        assert done.returncode not in (0, 124)
        got = lines(done.stdout)
        assert len(got) == 2
        for line in [*got, done.stderr]:
            assert f"{LEVEL}=MPI_THREAD_MULTIPLE" in line
            assert "import mpiserve before mpi4py.MPI" in line
        assert got[0].startswith("ETHREAD: ")
    else:
        assert done.returncode == 0
        assert lines(done.stdout) == right(2)


@pytest.mark.every_mpi
def test_the_setting_that_the_error_names_mends_it(mpiexec, tmp_path):
    write(tmp_path, MULTIPLE + SIMULATION)
    args = ["-n", 2, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"]
    done = mpiexec(args, env={LEVEL: "MPI_THREAD_MULTIPLE"})
    assert done.returncode == 0
    assert lines(done.stdout) == right(2)


@pytest.mark.takes_long
@pytest.mark.every_mpi
def test_the_setting_mends_it_for_a_c_simulation_as_well(mpiexec, tmp_path):
    write(tmp_path)
    (tmp_path / "plain.c").write_text(PLAIN_C)
    program = compile_simulation(tmp_path / "plain.c")
    args = ["-n", 2, program, ":", "-n", 1, *SERVE, "c.toml"]
    done = mpiexec(args, env={LEVEL: "MPI_THREAD_MULTIPLE"})
    assert done.returncode == 0
    assert lines(done.stdout) == right(2)


@pytest.mark.takes_long
@pytest.mark.every_mpi
def test_importing_mpiserve_before_mpi4py_mends_it_too(mpiexec, tmp_path):
    write(tmp_path, "import mpiserve\nfrom mpi4py import MPI\n\n" + SIMULATION)
    done = mpiexec(["-n", 2, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert lines(done.stdout) == right(2)


def test_a_model_that_cannot_be_loaded(mpiexec, tmp_path):
    write(tmp_path, FINDS)
    (tmp_path / "model.py").write_text('raise OSError("the weights are not there")\n')
    done = mpiexec(["-n", 2, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode not in (0, 124)
    got = lines(done.stdout)
    assert len(got) == 2
    for line in got:
        assert line.startswith("ModelError: ")
        assert "twice" in line and "the weights are not there" in line
    assert "service twice, replica 0" in done.stderr and "cannot be served" in done.stderr
    assert 'raise OSError("the weights are not there")' in done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out")
def test_bind_gives_its_ranks_cores_and_leaves_the_simulation_alone(mpiexec, tmp_path):
    where = 'import os\nprint("cores", sorted(os.sched_getaffinity(0)), flush=True)\n'
    write(tmp_path, SIMULATION + where, "[partition]\nbind = true\n" + CONFIG)
    cores = sorted(os.sched_getaffinity(0))
    done = mpiexec(["-n", 1, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert f"cores {cores}\n" in done.stdout
    assert f"bound to cores {cores[-1]}\n" in done.stderr
