"""A wrinkled flame: MPI transport in numpy, chemistry from a DeepSpeed inference rank.

mpiexec -n 4 python -m mpiserve run coupling.toml simulate.py
"""

import argparse
import time
from pathlib import Path

import mpiserve

# isort: split
# After mpiserve: mpi4py.MPI requests a thread level by default that MPICH worlds may not mix.
import kinetics
import numpy as np
import report
from mpi4py import MPI
from transport import Grid, Transport, initial_state

from mpiserve import terminal

OUT = Path(__file__).resolve().with_name("out")


def interior(state):
    """Return the cells of a state without its halo."""
    return state[:, 1:-1, 1:-1]


def react(state, substep):
    """Let `substep`, a function of cells `[cells, 3]`, change all cells of this rank."""
    inner = interior(state)
    cells = np.ascontiguousarray(inner.reshape(3, -1).T)
    inner[...] = substep(cells).T.reshape(inner.shape)


def step(state, transport, substep):
    """Advance by one step of Strang's splitting: half the transport, reaction, the other half."""
    transport.advance(state, 0.5 * kinetics.REACTION_TIME)
    react(state, substep)
    transport.advance(state, 0.5 * kinetics.REACTION_TIME)


def march(state, transport, substep, steps, after):
    """Take `steps` time steps; return the seconds that this rank spent in them.

    `after(number)` runs after each step, outside the time taken. It must not communicate: a rank
    that waits for another has to do so within the steps, where it counts.
    """
    transport.comm.Barrier()
    seconds = 0.0
    for number in range(steps):
        start = time.perf_counter()
        step(state, transport, substep)
        seconds += time.perf_counter() - start
        after(number)
    return largest(transport.comm, seconds) / steps


def largest(comm, value):
    """Return the largest `value` of all ranks."""
    result = np.empty(1)
    comm.Allreduce(np.array([value], dtype=float), result, MPI.MAX)
    return float(result[0])


class Bounds:
    """The smallest and largest temperature and mass fractions of a run."""

    def __init__(self):
        self._low, self._high = np.full(3, np.inf), np.full(3, -np.inf)

    def include(self, state):
        """Take the cells of this rank into account."""
        np.minimum(self._low, interior(state).min(axis=(1, 2)), out=self._low)
        np.maximum(self._high, interior(state).max(axis=(1, 2)), out=self._high)

    def over_ranks(self, comm):
        """Return the bounds over all ranks by name."""
        comm.Allreduce(MPI.IN_PLACE, self._low, MPI.MIN)
        comm.Allreduce(MPI.IN_PLACE, self._high, MPI.MAX)
        pairs = np.stack([self._low, self._high], axis=1).tolist()
        return dict(zip(report.NAMES, pairs, strict=True))


def run_coupled(grid, transport, chemistry, steps, bar):
    """Run with the network; return the result, the fields and this rank's temperature history."""
    state, bounds = initial_state(grid), Bounds()
    history = np.empty((steps, *grid.local_shape))

    def ask(cells):
        return chemistry(cells.astype(np.float32))

    def after(number):
        history[number] = interior(state)[0]
        bounds.include(state)
        bar.step()

    bar.begin("coupled to the network", steps)
    seconds = march(state, transport, ask, steps, after)
    result = {"seconds_per_step_coupled": seconds, "bounds_coupled": bounds.over_ranks(grid.comm)}
    quarters = [(steps - 1) * quarter // 4 for quarter in range(4)]
    fields = {"model": grid.gather(interior(state)), "earlier": grid.gather(history[quarters])}
    return result, fields, history


def run_reference(grid, transport, history, bar):
    """Run with the integrator; return the result and the fields, with every step's error."""
    state, bounds = initial_state(grid), Bounds()
    errors = np.zeros(len(history))

    def after(number):
        temperature = interior(state)[0]
        errors[number] = np.max(np.abs(history[number] - temperature) / temperature)
        bounds.include(state)
        bar.step()

    bar.begin("reference, cell by cell", len(history))
    seconds = march(state, transport, kinetics.integrate_cells, len(history), after)
    grid.comm.Allreduce(MPI.IN_PLACE, errors, MPI.MAX)
    result = {
        "max_rel_error_temperature": float(errors.max()),
        "final_rel_error_temperature": float(errors[-1]),
        "seconds_per_step_reference": seconds,
        "bounds_reference": bounds.over_ranks(grid.comm),
    }
    return result, {"reference": grid.gather(interior(state)), "errors": errors}


def broker_figures(session, service):
    """Return engine, transport, batch sizes of all requests, and the count of RMA targets."""
    totals = service.totals()
    mine = [totals["requests"], totals["rows"], totals["batch_rows"]]
    sums = np.array([*mine, session.info()["counters"]["rma_to_simulation"]], dtype=np.int64)
    session.comm.Allreduce(MPI.IN_PLACE, sums, MPI.SUM)
    requests, rows, batch_rows, rma_targets = sums.tolist()
    return {
        "requests": requests,
        "mean_rows_per_request": rows / requests,
        "mean_batch_rows": batch_rows / requests,
        "mean_batch_rows_per_request_rows": batch_rows / rows,
        "simulation_rank_rma_targets": rma_targets,
        "engine": service.engine,
        "transport": service.transport,
        "mpi": MPI.Get_library_version().splitlines()[0].strip(" \0"),
    }


def simulate(session, options):
    """Run the coupled and the reference simulation; return the result and the fields to save."""
    grid = Grid(session.comm, options.nx, options.ny)
    transport, service = Transport(grid), session.service("chemistry")
    result = {
        "steps": options.steps,
        "time": options.steps * kinetics.REACTION_TIME,
        "grid": [options.nx, options.ny],
        "simulation_ranks": grid.comm.size,
        "max_rel_error_temperature": None,
        "speedup": None,
    }
    with terminal.Progress(shown=grid.comm.rank == 0) as bar:
        found, fields, history = run_coupled(grid, transport, service, options.steps, bar)
        result |= found | broker_figures(session, service)
        if options.reference:
            found, more = run_reference(grid, transport, history, bar)
            result |= found
            fields |= more
            coupled = result["seconds_per_step_coupled"]
            result["speedup"] = result["seconds_per_step_reference"] / coupled
    return result, fields


def positive(text):
    """Return an option's value if it is a positive number."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse(arguments=None):
    """Return the command-line options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nx", type=positive, default=96, help="cells along x")
    parser.add_argument("--ny", type=positive, default=72, help="cells along y")
    parser.add_argument("--steps", type=positive, default=200, help="time steps")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--picture", action=switch, default=True, help="draw picture.png")
    parser.add_argument("--reference", action=switch, default=True, help="run the integrator too")
    return parser.parse_args(arguments)


def main():
    """Take part in the session and, on simulation rank 0, write the results."""
    with mpiserve.open() as session:
        options = parse()
        result, fields = simulate(session, options)
        if session.comm.rank == 0:
            report.write(options.out, result, fields, picture=options.picture)


if __name__ == "__main__":
    main()
