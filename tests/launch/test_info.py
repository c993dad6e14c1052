"""`python -m mpiserve info`, and the launcher of another MPI."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from coupling import PYTHON, RUN, alone, is_mpich, write

from mpiserve.mpi.check import vendor

OPENS = """\
import mpiserve

try:
    mpiserve.open()
except mpiserve.Error as error:
    print(f"{error.code.name}: {error}")
"""


def rows(text):
    """Return the printed table: value by name."""
    cells = [line.strip("│┃| ").split("│") for line in text.splitlines() if line.count("│") > 1]
    return {cell[0].strip(): cell[1].strip() for cell in cells}


@pytest.fixture
def wrong_launcher():
    """What the launcher of the other MPI tells its processes."""
    return {"OMPI_COMM_WORLD_SIZE" if is_mpich() else "PMI_SIZE": "4"}


def library():
    return "MPICH" if is_mpich() else "Open MPI v"


@pytest.mark.every_mpi
def test_info_names_versions_and_the_mpi(mpiexec):
    done = mpiexec(["-n", 2, PYTHON, "-m", "mpiserve", "info"])
    assert done.returncode == 0
    table = rows(done.stdout)
    for name in ("mpiserve", "mpi4py", "numpy", "torch", "deepspeed"):
        assert table[name] == version(name)
    assert table["MPI library"].startswith(library())
    assert vendor(table["built with"]) == vendor(table["MPI library"])
    assert table["thread level"] == "serialized"
    assert table["world"] == "2 rank(s)"
    assert "shared" in table["transport"] and "rma" in table["transport"]
    assert "problem" not in table
    assert done.stdout.count("thread level") == 1  # one rank prints


def test_info_shows_a_wrong_launcher(tmp_path, wrong_launcher):
    done = alone(PYTHON, "-m", "mpiserve", "info", cwd=tmp_path, env=wrong_launcher)
    problem = rows(done.stdout)["problem"]
    assert library() in problem
    assert f"{next(iter(wrong_launcher))}=4" in problem


@pytest.mark.every_mpi
def test_run_refuses_a_wrong_launcher(tmp_path, wrong_launcher):
    write(tmp_path)
    done = alone(*RUN, "c.toml", "sim.py", cwd=tmp_path, env=wrong_launcher)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("mpiserve: ")]
    assert len(said) == 1
    assert "the world has 1 rank, but the launcher started 4" in said[0]
    assert library() in said[0] and f"{next(iter(wrong_launcher))}=4" in said[0]


def test_open_refuses_a_wrong_launcher(tmp_path, wrong_launcher):
    write(tmp_path, OPENS)
    done = alone(PYTHON, "sim.py", cwd=tmp_path, env=wrong_launcher)
    assert done.stdout.startswith("EVERSION: the world has 1 rank")
    assert library() in done.stdout and f"{next(iter(wrong_launcher))}=4" in done.stdout
