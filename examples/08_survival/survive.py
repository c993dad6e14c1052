"""The flame of example 01 with a model that crashes, hangs and returns NaN, and without.

mpiexec -n 5 python -m mpiserve run coupling.toml survive.py
"""

import argparse
import json
import sys
import time
from pathlib import Path

import mpiserve

# isort: split
# After mpiserve: mpi4py.MPI requests a thread level by default that MPICH worlds may not mix.
import numpy as np
import picture
from mpi4py import MPI

from mpiserve import terminal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "01_reacting_flow"))
import kinetics
from simulate import interior, march
from transport import Grid, Transport, initial_state

OUT = Path(__file__).resolve().with_name("out")
LIMIT = 0.02  # relative error of the temperature


def run(grid, transport, chemistry, steps, bar, text):
    """Run with a chemistry; return the temperature after each step, and when each step ended."""
    state = initial_state(grid)
    history, ends = np.empty((steps, *grid.local_shape)), np.empty(steps + 1)

    def after(number):
        history[number] = interior(state)[0]
        ends[number + 1] = time.time()
        bar.step()

    bar.begin(text, steps)
    ends[0] = time.time()
    march(state, transport, chemistry, steps, after)
    return history, ends


def begin_faults(comm):
    """Let the model draw faults from now on: see faulty.py."""
    if comm.rank == 0:
        (OUT / "calls").touch()
    comm.Barrier()


def difference(comm, disturbed, undisturbed):
    """Return the largest relative difference of all cells, after each step."""
    mine = np.max(np.abs(disturbed - undisturbed) / undisturbed, axis=(1, 2))
    largest = np.empty_like(mine)
    comm.Allreduce(mine, largest, MPI.MAX)
    return largest


def events(ends):
    """Return what the model noted: a list of (step, kind)."""
    path = OUT / "events.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steps = np.searchsorted(ends, [event["time"] for event in found])
    return [(int(step), event["kind"]) for step, event in zip(steps, found, strict=True)]


def by_physics(comm, answers):
    """Return how many rows the integrator has answered on all ranks, by step."""
    rows = np.array(answers, dtype=np.int64)
    comm.Allreduce(MPI.IN_PLACE, rows, MPI.SUM)
    return rows


def simulate(session, options):
    """Run without and with faults; return the result, and what the picture shows."""
    grid = Grid(session.comm, options.nx, options.ny)
    transport, chemistry = Transport(grid), session.service("chemistry")
    faulty, answered = session.service("faulty"), []  # rows of each step, by the integrator

    @faulty.fallback
    def physics(cells):
        answered[-1] += len(cells)
        return kinetics.integrate_cells(cells)

    def sound(cells):
        return chemistry(cells.astype(np.float32))

    def shaky(cells):
        answered.append(0)
        return faulty(cells.astype(np.float32))

    with terminal.Progress(shown=grid.comm.rank == 0) as bar:
        undisturbed, _ = run(grid, transport, sound, options.steps, bar, "undisturbed")
        begin_faults(session.comm)
        disturbed, ends = run(grid, transport, shaky, options.steps, bar, "with faults")
    errors, rows = difference(grid.comm, disturbed, undisturbed), by_physics(grid.comm, answered)
    happened = events(ends)
    result = {
        "steps": options.steps,
        "grid": [options.nx, options.ny],
        **{kind: sum(k == kind for _, k in happened) for kind in picture.KINDS},
        "rows": options.nx * options.ny * options.steps,
        "rows_by_physics": int(rows.sum()),
        "max_rel_difference_temperature": float(errors.max()),
        "limit": LIMIT,
        "finite": bool(np.isfinite(disturbed).all()),
        "seconds_per_step_median": float(np.median(np.diff(ends))),
        "seconds_per_step_largest": float(np.diff(ends).max()),
    }
    return result, {"events": happened, "ends": ends, "errors": errors, "rows": rows}


def positive(text):
    """Return an option's value if it is a positive number."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse():
    """Return the command-line options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nx", type=positive, default=96, help="cells along x")
    parser.add_argument("--ny", type=positive, default=72, help="cells along y")
    parser.add_argument("--steps", type=positive, default=200, help="time steps")
    return parser.parse_args()


def main():
    """Take part in the session and, on simulation rank 0, write the results."""
    options = parse()
    for name in ("calls", "events.jsonl"):  # of the last run
        (OUT / name).unlink(missing_ok=True)
    with mpiserve.open() as session:
        result, shown = simulate(session, options)
        if session.comm.rank == 0:
            (OUT / "result.json").write_text(json.dumps(result, indent=2) + "\n")
            picture.draw(OUT / "picture.png", result, shown)
            picture.print_table(result, OUT)


if __name__ == "__main__":
    main()
