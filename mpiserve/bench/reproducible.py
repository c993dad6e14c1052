"""Three clients and one server: the price of a service that gives the same bits in every run.

The same network is served as usual and with `reproducible = true`, in turns of a session each, so
that other load on the machine affects both alike.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, couple, network
from mpiserve.bench.models import features
from mpiserve.bench.plan import LEAST_WARM, Plan
from mpiserve.bench.report import Progress
from mpiserve.session import Session

CLIENTS = 3
ROWS = (8, 1024)  # of each client
LATE_MS = (0, 2)  # by which one client asks later than the others
TURNS, STEPS = 5, 200
KINDS: dict[str, dict[str, Any]] = {"usual": {}, "reproducible": {"reproducible": True}}

Setting = tuple[int, int]  # rows, and how late
Times = dict[Setting, np.ndarray]  # nanoseconds from the beginning of each step [clients, steps]


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure steps of both services. Collective over 4 ranks; rank 0 gets the rows."""
    turns, steps = (1, 10) if plan.quick else (TURNS, STEPS)
    progress.begin("reproducible", turns * len(KINDS))
    found: dict[tuple[str, Setting], list[np.ndarray]] = defaultdict(list)
    for turn in range(turns):
        for kind, keys in KINDS.items():
            progress.step(f"turn {turn + 1}, {kind}")
            times = couple(comm, "shared", network(**keys), partial(ask, steps))
            for setting, took in (times or {}).items():
                found[kind, setting].append(took)
    return [*beside(found)] if comm.rank == 0 else []


def ask(steps: int, session: Session) -> Times:
    """Take the steps of each setting."""
    settings = [(rows, late) for rows in ROWS for late in LATE_MS]
    return {setting: taken(session, *setting, LEAST_WARM + steps) for setting in settings}


def taken(session: Session, rows: int, late: int, steps: int) -> np.ndarray:
    """Take steps that the clients begin together; the first client is the one that is late."""
    comm, service = session.comm, session.service(SERVICE)
    x, y = features(rows), features(rows)
    took = np.zeros(steps, np.int64)
    for i in range(steps):
        comm.Barrier()
        begin = time.perf_counter_ns()
        if late and comm.rank == 0:
            time.sleep(late / 1000)
        service(x, out=y)
        took[i] = time.perf_counter_ns() - begin
    return np.array(comm.allgather(took[LEAST_WARM:]))


def beside(found: dict[tuple[str, Setting], list[np.ndarray]]) -> Iterator[dict[str, Any]]:
    """Yield how much longer it takes if reproducible: all clients, and one that is in time."""
    settings = [setting for kind, setting in found if kind == "usual"]
    for rows, late in settings:
        times = {kind: np.concatenate(found[kind, (rows, late)], axis=1) for kind in KINDS}
        ends = {"all clients": {kind: took.max(axis=0) for kind, took in times.items()}}
        if late:
            ends["a client in time"] = {kind: took[1] for kind, took in times.items()}
        for what, took in ends.items():
            p50 = {kind: float(np.median(values)) / 1000 for kind, values in took.items()}
            yield {
                "case": "reproducible",
                "clients": CLIENTS,
                "rows": rows,
                "late_ms": late,
                "answered": what,
                **{f"{kind}_us": round(value, 1) for kind, value in p50.items()},
                "value": round(p50["reproducible"] / p50["usual"], 3),
                "unit": "x",
            }
