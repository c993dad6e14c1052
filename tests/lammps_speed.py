"""Time LAMMPS with a potential that is served beside the same model in its process.

    python tests/lammps_speed.py [--steps 10000] [--cells 2] [--turns 3]

runs the example of plugins/lammps on one rank of LAMMPS, in each of these ways in turns: with
`pair_style mpiserve`, and with `fix external` and a function in Python that asks the service, over
each transport; and with `fix external` and a function that runs the model itself. Prints a table,
and ends with 1 if the ways do not compute the same. `make bench-lammps` runs it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lammps_jobs
import mpijob
import numpy as np


class Way(NamedTuple):
    """How forces come to LAMMPS; without a transport the model is in its process."""

    name: str
    transport: str = ""


class Run(NamedTuple):
    """Steps per second, and the columns of lammps_jobs.thermo."""

    speed: float
    columns: np.ndarray


IN_PROCESS = Way("`fix external`, the model in its process")
WAYS = (
    Way("`pair_style mpiserve`", "shared"),
    Way("`pair_style mpiserve`", "rma"),
    Way("`fix external`, served", "shared"),
    Way("`fix external`, served", "rma"),
    IN_PROCESS,
)
EARLY = 100  # steps in which all compute the same; later, atoms magnify the smallest difference
HEAD = """\
| forces by | transport | steps/s, median (least to most) | ÷ in its process | drift |
| --- | --- | --- | --- | --- |"""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--cells", type=int, default=2, help="in each direction, of four atoms")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="mpiserve-lammps-") as folder:
        lammps_jobs.prepare(Path(folder))
        found = measure(Path(folder), asked.steps, asked.cells, asked.turns)
    print(f"\n{4 * asked.cells**3} atoms, {asked.steps} steps, {asked.turns} turns\n")
    print(table(found))


def measure(folder: Path, steps: int, cells: int, turns: int) -> dict[Way, list[Run]]:
    """Run each way so many times, in turns, in a folder that is prepared.

    Raises:
        SystemExit: If a run fails, or computes other energies than the others.
    """
    found: dict[Way, list[Run]] = {way: [] for way in WAYS}
    for _ in range(turns):
        for way, runs in found.items():
            runs.append(timed(way, folder, steps=steps, cells=cells))
            print(f"{way.name} {way.transport}: {runs[-1].speed:.0f} steps/s", flush=True)
    compare(found)
    return found


def timed(way: Way, folder: Path, **variables: Any) -> Run:
    """Run one way; LAMMPS itself tells the time of its steps, without the start of the job."""
    if way.name == WAYS[0].name:
        job = lammps_jobs.with_plugin(1, "argon.in", **variables)
    else:
        job = lammps_jobs.with_external(bool(way.transport), **variables)
    env = mpijob.settings() | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": ""}
    env["MPISERVE_TRANSPORT"] = way.transport or "shared"
    command = [env["MPIEXEC"], *map(str, job)]
    done = mpijob.run(command, timeout=3600, env=env, cwd=folder)
    loop = re.search(r"Loop time of (\S+) on \d+ procs for (\d+) steps", done.stdout)
    if done.returncode or not loop:
        raise SystemExit(f"{done.stdout}\n{done.stderr}\nfailed: {' '.join(command)}")
    return Run(int(loop[2]) / float(loop[1]), lammps_jobs.thermo(done.stdout))


def compare(found: dict[Way, list[Run]]) -> None:
    """End this program if the energies of the ways differ."""
    expected = found[IN_PROCESS][0].columns
    early = expected[0] <= EARLY
    for way, runs in found.items():
        for run in runs:  # step, kinetic, potential and total energy
            if not np.allclose(run.columns[:4, early], expected[:4, early], rtol=1e-9, atol=0):
                raise SystemExit(f"{way.name} {way.transport}: other energies than in process")


def table(found: dict[Way, list[Run]]) -> str:
    """Return rows of Markdown, one for each way."""
    beside = median(run.speed for run in found[IN_PROCESS])
    return "\n".join([HEAD, *(row(way, runs, beside) for way, runs in found.items())])


def row(way: Way, runs: list[Run], beside: float) -> str:
    speeds = [run.speed for run in runs]
    slope = max(lammps_jobs.drift(*run.columns[[0, 1, 3]]) for run in runs)
    cells = [way.name, way.transport]
    cells += [f"{median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"]
    cells += [f"{median(speeds) / beside:.2f}", f"{slope:.1g}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
