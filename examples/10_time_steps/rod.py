"""A rod that cools: one call of a pace in each time step, in place of one of the service."""

import sys
import time

import numpy as np

import mpiserve

CELLS, STEPS, DT, SOLVER = 200, 12, 0.01, 0.02  # SOLVER: seconds of work in each step
PACES = ((1, 0, False), (1, 1, False), (1, 1, True), (4, 1, True))  # every, lag, extrapolate


def rest_of_the_solver() -> None:
    """Stand for the rest of the solver, which keeps a core busy."""
    until = time.perf_counter() + SOLVER
    while time.perf_counter() < until:
        pass


def run(session, every: int, lag: int, extrapolate: bool) -> None:
    pace = session.service("cooling").pace(every=every, lag=lag, extrapolate=extrapolate)
    T, q, ages = 1000.0 + np.arange(CELLS), np.empty(CELLS), []
    begin = time.perf_counter()
    for _ in range(STEPS):
        session.step()  # for the report of MPISERVE_PROFILE
        pace(T, out=q)
        T = T + DT * q
        rest_of_the_solver()
        ages.append(pace.age)
    each = (time.perf_counter() - begin) / STEPS
    what = f"rank {session.comm.rank}: every {every}, lag {lag}, "
    what += "on a line" if extrapolate else "held"
    print(f"{what}: {T[-1]:.4f} K, ages {sum(ages)}, oldest {max(ages)}", flush=True)
    print(f"{what}: {1e3 * each:.1f} ms a step", file=sys.stderr)


with mpiserve.open() as session:
    for pace in PACES:
        run(session, *pace)
    counters = session.info()["counters"]
    known = ", ".join(f"{counters[key]} {key}" for key in counters if key.startswith("paced"))
    print(f"rank {session.comm.rank}: {known}", flush=True)
