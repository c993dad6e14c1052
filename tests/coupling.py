"""What launch tests are made of: a model, its configuration, a simulation, and a C compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mpijob
import pytest
from jobs import Target

from mpiserve.tools import build_flags

PYTHON = sys.executable
RUN = (PYTHON, "-m", "mpiserve", "run")
SERVE = (PYTHON, "-m", "mpiserve", "serve")

# Importing this costs nothing beside numpy, so that a job starts in a second or two.
MODEL = """\
def twice(x):
    return 2 * x
"""

CONFIG = """\
[service.twice]
backend = "python"
model = "model:twice"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
max_batch_rows = 64
"""

# Every rank checks what it gets, and says so.
SIMULATION = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank = session.comm.rank
    twice = session.service("twice")
    for rows in range(1, 51):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) + rank
        assert (twice(x) == 2 * x).all(), (rank, rows)
    print(f"simulation rank {rank} of {session.comm.size} is right", flush=True)
"""


def first_is_quick(values: Iterable[Any]) -> list[Any]:
    """Return parameters of a test: all but the first take long."""
    first, *others = values
    return [first, *(pytest.param(other, marks=pytest.mark.takes_long) for other in others)]


def write(folder: Path, simulation: str = SIMULATION, config: str = CONFIG) -> None:
    """Put model.py, c.toml and sim.py into a folder."""
    (folder / "model.py").write_text(MODEL)
    (folder / "c.toml").write_text(config)
    (folder / "sim.py").write_text(simulation)


def right(size: int) -> list[str]:
    """Return what SIMULATION prints on so many simulation ranks, sorted."""
    return sorted(f"simulation rank {rank} of {size} is right" for rank in range(size))


def lines(text: str) -> list[str]:
    """Return the lines in an order that does not depend on the ranks' speed."""
    return sorted(text.splitlines())


def said_by_ranks(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of stdout, without what MPICH's mpiexec says of a status that is not 0."""
    return done.stdout.partition("\n=====")[0].rstrip("\n").splitlines()


def is_mpich() -> bool:
    """Tell whether the jobs of this environment run under MPICH."""
    return mpijob.flavour(mpijob.mpiexec()) == "mpich"


def compile_simulation(source: Path, *flags: str) -> Path:
    """Compile a C simulation as a user does, with the installed package."""
    flags = (*flags, *build_flags.cflags().split(), *build_flags.libs().split())
    return compiled(
        [Target("", Path(sys.prefix)).mpicc, "-std=c11", "-Wall", "-Wextra"], source, flags
    )


def compile_fortran(source: Path, *flags: str) -> Path:
    """The same for a Fortran simulation, with the wrapper of this environment's MPI."""
    flags = (*flags, *build_flags.fflags().split(), *build_flags.flibs().split())
    # Debian's mpifort.mpich says -O2, with which the largest program takes 40 s in place of 5.
    command = [f"{sys.prefix}/bin/mpifort", "-std=f2018", "-Wall", "-Werror", "-g", "-O0"]
    return compiled(command, source, flags)


def compiled(command: list[str], source: Path, flags: tuple[str, ...]) -> Path:
    program = source.with_suffix("")
    done = subprocess.run(
        [*command, str(source), *flags, "-o", program],
        capture_output=True,
        text=True,
        cwd=source.parent,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return program


def alone(*command: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one process without a launcher."""
    done = mpijob.run(list(command), timeout=60, env=mpijob.settings() | env, cwd=cwd)
    print("$", *command, f"\n[exit {done.returncode}]\n{done.stdout}")
    print(done.stderr, file=sys.stderr)
    return done
