"""`run --replace-world`: a script that says COMM_WORLD, unmodified, beside inference ranks."""

from __future__ import annotations

import shutil

import pytest
from coupling import CONFIG, PYTHON, RUN, write
from jobs import ROOT

REPLACED = [*RUN, "--replace-world", "c.toml"]
FIRST = "[partition]\nranks = [0]\n\n" + CONFIG


def test_an_unmodified_script_gives_the_same_answer_as_alone(mpiexec, tmp_path):
    write(tmp_path, config=FIRST)
    shutil.copy(ROOT / "tests/legacy/heat.py", tmp_path)
    alone = mpiexec(["-n", 3, PYTHON, "-m", "mpi4py", "heat.py"])
    assert alone.returncode == 0
    assert len(alone.stdout.splitlines()) == 7
    done = mpiexec(["-n", 4, *REPLACED, "heat.py"])
    assert done.returncode == 0
    assert done.stdout == alone.stdout
    assert done.stderr.count("0 requests, 0 failed") == 1


ASKS = """\
import mpiserve
import numpy as np
from mpi4py import MPI

try:
    mpiserve.open(MPI.COMM_SELF)
except mpiserve.ArgumentError as error:
    told = error.text
with mpiserve.open() as session:
    assert session.comm.size == MPI.COMM_WORLD.size == 2
    y = session.service("twice")(np.ones((2, 3), np.float32))
try:
    mpiserve.open()
except mpiserve.Error as error:
    print(told, error.text, MPI.COMM_WORLD.allreduce(float(y.sum())), sep="; ", flush=True)
"""


def test_open_in_a_script_returns_the_open_session(mpiexec, tmp_path):
    write(tmp_path, ASKS)
    done = mpiexec(["-n", 3, *REPLACED, "sim.py"])
    assert done.returncode == 0
    told = "under `run` the world of a session is MPI_COMM_WORLD"
    assert (
        done.stdout.splitlines() == [f"{told}; under `run` a program opens one session; 24.0"] * 2
    )


@pytest.mark.takes_long
def test_an_exception_ends_the_job_and_is_printed(mpiexec, tmp_path):
    write(tmp_path, "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 0:\n    1 / 0\n")
    done = mpiexec(["-n", 3, *REPLACED, "sim.py"], env={"MPISERVE_GRACE": "20"})
    assert done.returncode == 1
    assert done.stderr.count("ZeroDivisionError: division by zero") == 1


def test_abort_ends_the_inference_ranks_too(mpiexec, tmp_path):
    script = "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 0:\n    MPI.COMM_WORLD.Abort(3)\n"
    write(tmp_path, script + "MPI.COMM_WORLD.Barrier()\n")
    done = mpiexec(["-n", 3, *REPLACED, "sim.py"])
    assert done.returncode not in (0, 124)
