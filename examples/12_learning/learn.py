"""The flame of example 01, whose network learns from the integrator while it burns.

mpiexec -n 5 python -m mpiserve run coupling.toml learn.py
"""

import argparse
import json
import sys
from pathlib import Path

import mpiserve

# isort: split
# After mpiserve: mpi4py.MPI requests a thread level by default that MPICH worlds may not mix.
import numpy as np
from mpi4py import MPI

from mpiserve import terminal

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "01_reacting_flow"))
import kinetics
import picture
from simulate import interior, step
from transport import Grid, Transport, initial_state

OUT = Path(__file__).resolve().with_name("out")
LIMIT = 0.02  # relative error of the temperature
LAST = 10  # the speed at the end is the median over a tenth of the steps


class Chemistry:
    """The reaction substep: the service, and the integrator for rows that it is not trusted with.

    Attributes:
        trusted: How many rows of this rank were trusted, by step.
    """

    def __init__(self, session):
        self._session, self._service = session, session.service("chemistry")
        self._service.fallback(self._physics)
        self.trusted = []

    @staticmethod
    def _physics(cells):
        exact = cells.astype(float)
        return (kinetics.integrate_cells(exact) - exact).astype(np.float32)

    def __call__(self, cells):
        """Return the cells after the substep."""
        self._session.step()
        request = self._service.submit(cells.astype(np.float32))
        change = request.result()
        self.trusted.append(int(np.sum(request.trusted)))
        return cells + change


def run(grid, transport, substep, steps, bar, text):
    """Run with a substep; return the temperature after each step, and the seconds of each."""
    state = initial_state(grid)
    history, seconds = np.empty((steps, *grid.local_shape)), np.empty(steps)
    bar.begin(text, steps)
    for number in range(steps):
        grid.comm.Barrier()
        begin = MPI.Wtime()
        step(state, transport, substep)
        seconds[number] = MPI.Wtime() - begin
        history[number] = interior(state)[0]
        bar.step()
    grid.comm.Allreduce(MPI.IN_PLACE, seconds, MPI.MAX)
    return history, seconds, grid.gather(interior(state))


def errors_of(comm, learnt, reference):
    """Return the largest relative error of the temperature of all cells, after each step."""
    mine = np.max(np.abs(learnt - reference) / reference, axis=(1, 2))
    largest = np.empty_like(mine)
    comm.Allreduce(mine, largest, MPI.MAX)
    return largest


def simulate(session, options):
    """Run with the physics alone, then with the service; return the result and what is drawn.

    In this order the trainer has no pairs yet, and takes no time from the physics alone.
    """
    grid = Grid(session.comm, options.nx, options.ny)
    transport, chemistry = Transport(grid), Chemistry(session)
    with terminal.Progress(shown=grid.comm.rank == 0) as bar:
        alone = run(
            grid, transport, kinetics.integrate_cells, options.steps, bar, "the physics alone"
        )
        learnt, seconds, fields = run(
            grid, transport, chemistry, options.steps, bar, "with a service that learns"
        )
    trusted = np.array(chemistry.trusted)
    grid.comm.Allreduce(MPI.IN_PLACE, trusted, MPI.SUM)
    share = trusted / (options.nx * options.ny)
    errors = errors_of(grid.comm, learnt, alone[0])
    last = slice(-max(1, options.steps // LAST), None)
    ends = [float(np.median(each[last])) for each in (seconds, alone[1])]
    result = {
        "steps": options.steps,
        "grid": [options.nx, options.ny],
        "max_rel_error_temperature": float(errors.max()),
        "limit": LIMIT,
        "trusted_first": float(share[0]),
        "trusted_last": float(share[last].mean()),
        "seconds_per_step_last": ends[0],
        "seconds_per_step_physics": ends[1],
        "speedup_last": ends[1] / ends[0],
        "seconds_with_service": float(seconds.sum()),
        "seconds_physics": float(alone[1].sum()),
    }
    shown = {"share": share, "seconds": seconds, "alone": alone[1], "errors": errors}
    return result, shown | {"learnt": fields, "reference": alone[2]}


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
    parser.add_argument("--steps", type=positive, default=400, help="time steps")
    return parser.parse_args()


def main():
    """Take part in the session and, on simulation rank 0, write the results."""
    options = parse()
    with mpiserve.open() as session:
        result, shown = simulate(session, options)
        if session.comm.rank == 0:
            OUT.mkdir(exist_ok=True)
            (OUT / "result.json").write_text(json.dumps(result, indent=2) + "\n")
            progress = OUT / "learned/chemistry/progress.json"
            learned = json.loads(progress.read_text()) if progress.exists() else None
            picture.draw(OUT / "picture.png", result, shown, learned)
            picture.print_table(result, OUT)


if __name__ == "__main__":
    main()
