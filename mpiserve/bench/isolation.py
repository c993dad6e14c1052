"""Measure what the process of a model costs: torch's identity with and without, and restarts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, couple, doubles
from mpiserve.bench.latency import WORD, Case, echo, in_turns, python_client
from mpiserve.bench.models import FATAL
from mpiserve.bench.plan import KIB, MIB, Plan
from mpiserve.bench.report import Progress, Row
from mpiserve.bench.stats import summary
from mpiserve.config import Config
from mpiserve.errors import ModelError
from mpiserve.session import Session

SIZES = (KIB, MIB)  # bytes each way of the identity, beside a word
KILLS, QUICK_KILLS = 30, 4
WAYS: dict[str, dict[str, Any]] = {"in the rank": {"isolate": False}, "in a child": {}}
BACKENDS = {"python": "Mortal", "torch": "mortal"}


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[Row]:
    """Measure the identity in turns. Collective over 2 ranks; rank 0 gets the rows."""
    sizes = [size for size in (WORD, *SIZES) if size in plan.rounds]
    smaller = Plan({size: plan.rounds[size] for size in sizes}, plan.repetitions, plan.quick)
    return in_turns(comm, smaller, progress, [*identities(max(sizes))])


# ---- torch's identity ------------------------------------------------------------------------


def identities(most: int) -> Iterable[Case]:
    """Served from the inference rank itself, and from a process of its own."""
    for way, keys in WAYS.items():
        model = {"model": "mpiserve.bench.models:identity", "dtype": "float64"}
        service = doubles("torch", most // WORD, **model, **keys)
        labels = {"client": "python", "backend": "torch", "transport": "shared", "engine": way}
        yield Case({"case": "identity", **labels}, partial(python_client, service, "shared", False))


# ---- restarts --------------------------------------------------------------------------------


def measure_restarts(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[Row]:
    """Kill the process of a model again and again: the time from a kill to the next answer."""
    rows: list[Row] = []
    backends = ["python"] if plan.quick else [*BACKENDS]
    progress.begin("restart", len(backends))
    for backend in backends:
        progress.step(backend)
        folder = comm.bcast(tempfile.mkdtemp(prefix="mpiserve-") if comm.rank == 0 else None)
        died = Path(folder, "died")
        kills = QUICK_KILLS if plan.quick else KILLS
        samples = couple(comm, "shared", mortal(backend, died), partial(kill, died, kills))
        if samples is not None:
            died.unlink()
            died.parent.rmdir()
            rows += [figure | {"backend": backend, "kills": kills} for figure in figures(samples)]
    return rows


def mortal(backend: str, died: Path) -> Config:
    """Make the configuration of a model that a row can kill."""
    model = f"mpiserve.bench.models:{BACKENDS[backend]}"
    options = {"path": str(died)}
    keys = {"arguments": options} if backend == "torch" else options
    return doubles(backend, 64, model=model, options=keys, restarts=1_000_000)


def kill(died: Path, kills: int, session: Session) -> np.ndarray:
    """Kill; return the nanoseconds from each death to the next answer."""
    service = session.service(SERVICE)
    echo(service, False, WORD, 5, 5)
    samples = []
    for _ in range(kills):
        try:
            service(np.full(1, FATAL))
        except ModelError:
            pass
        else:
            raise RuntimeError("the model should have died")
        echo(service, False, WORD, 0, 1)
        samples.append(time.monotonic_ns() - int(died.read_text()))
    return np.array(samples)


def figures(samples: np.ndarray) -> Iterable[Row]:
    """Yield the rows of samples, in ms."""
    for name, value in summary([samples]).items():
        figure = name.removesuffix("_us")
        yield {"case": "restart", "figure": figure, "value": value / 1000, "unit": "ms"}
