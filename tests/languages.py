"""The examples that exist in several languages: built as their user builds them, run, compared."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from coupling import SERVE, lines
from jobs import ROOT, Target

EXAMPLES = ROOT / "examples"
RANKS = 2
PROGRAMS = {"02_hello": "hello", "03_async_overlap": "overlap", "04_many_inputs": "many"}
PROGRAMS |= {"10_time_steps": "rod"}
# In Fortran only, or not the same in Python.
ALONE = {"05_shallow_water": "shallow_water", "09_newton": "newton", "12_learning": "learn"}


def expected(example: str) -> list[str]:
    """What the example prints, computed here."""
    printed = {"02_hello": hello, "03_async_overlap": overlap, "04_many_inputs": many}
    printed |= {"10_time_steps": rod}
    return sorted(line for rank in range(RANKS) for line in printed[example](rank))


def hello(rank: int) -> list[str]:
    celsius = [rank - 40, rank, rank + 100]
    return [f"rank {rank}: {c:6.1f} C is {1.8 * c + 32:6.1f} F" for c in celsius]


def overlap(rank: int) -> list[str]:
    squares = "".join(f"{(rank + i) ** 2:6.1f}" for i in range(3))
    return [f"rank {rank}:{squares}, own sum {np.pi**2 / 6 - 1 / 8e6:.6f}"]


def many(rank: int) -> list[str]:
    printed = [
        f"rank {rank}: service 'gas', input 'phase': dtype is int64, the signature says int32"
    ]
    for row in range(2):
        flux = [0.5 * (3 * row + k + rank) * (1 + row) for k in range(3)]
        density = 300 / (200 + 100 * (rank + row)) * (1 + row)
        values = " ".join(f"{value:.2f}" for value in flux)
        printed.append(f"rank {rank}, row {row}: density {density:.4f}, flux {values}")
    return printed


def rod(rank: int) -> list[str]:
    printed, ages = [], []
    for every, lag, extrapolate in ((1, 0, 0), (1, 1, 0), (1, 1, 1), (4, 1, 1)):
        T, q, own = 1199.0, {}, []  # of the last cell
        for step in range(12):
            if step % every == 0:
                q[step] = -2e-9 * (T**4 - 300.0**4)
            last = max((step - lag) // every * every, 0)
            slope = (q[last] - q[last - every]) / every if extrapolate and last else 0
            own.append(step - last)
            T += 0.01 * (q[last] + own[-1] * slope)
        what = f"rank {rank}: every {every}, lag {lag}, {'on a line' if extrapolate else 'held'}"
        printed.append(f"{what}: {T:.4f} K, ages {sum(own)}, oldest {max(own)}")
        ages += own
    counters = f"{len(ages)} paced_steps, {sum(ages)} paced_age_sum, {max(ages)} paced_age_max"
    return [*printed, f"rank {rank}: {counters}"]


def build(example: str, folder: Path, *suffixes: str) -> None:
    """Copy the example and its makefile, and build its program in these languages."""
    name = (PROGRAMS | ALONE)[example]
    build_programs(example, folder, *(f"{name}_{suffix}" for suffix in suffixes))


def build_programs(example: str, folder: Path, *programs: str) -> None:
    """The same for programs of any name, with this environment's MPI."""
    built = shutil.ignore_patterns(  # perhaps with another MPI
        "*_c", "*_f", "*.mod", "*.pt", "*.pt2", "endpoint.json", "out"
    )
    shutil.copytree(EXAMPLES / example, folder / example, ignore=built)
    shutil.copy(EXAMPLES / "Makefile", folder)
    tools = {"PYTHON": sys.executable, "MPICC": Target("", Path(sys.prefix)).mpicc}
    tools["MPIFORT"] = f"{sys.prefix}/bin/mpifort"
    settings = [f"{key}={value}" for key, value in tools.items()]
    command = ["make", "-C", str(folder), *settings, *(f"{example}/{name}" for name in programs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr


def check(example: str, mpiexec: Callable, folder: Path, *suffixes: str) -> None:
    """Run it in C or Fortran (by suffix) and in Python: all print what they should."""
    build(example, folder, *suffixes)
    name = PROGRAMS[example]
    commands = [[f"./{name}_{suffix}"] for suffix in suffixes] + [[sys.executable, f"{name}.py"]]
    for command in commands:
        job = ["-n", RANKS, *command, ":", "-n", 1, *SERVE, "coupling.toml"]
        done = mpiexec(job, cwd=folder / example, timeout=150)
        assert done.returncode == 0
        assert lines(done.stdout) == expected(example)
