"""Measure deaths of a model's process: the time from each to the next answer, under load."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, couple, doubles
from mpiserve.bench.deaths import DEATHS, SILENT
from mpiserve.bench.models import FATAL
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress, Row
from mpiserve.config import Config
from mpiserve.errors import ModelError
from mpiserve.session import Session

CLIENTS = 3
ROUNDS, QUICK_ROUNDS = 5, 1  # of each kind
BACKENDS = {"python": "Mortal", "torch": "mortal"}
TIMEOUT = 0.5  # seconds of a batch that takes too long
BAR = 50  # milliseconds
REST = 0.02  # seconds under load before a death

Waits = dict[str, list[float]]  # milliseconds from each death to the next answer, by kind


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[Row]:
    """Let a model die in each way. Collective over 4 ranks; rank 0 gets the rows.

    Raises:
        RuntimeError: If an answer was wrong, or a request failed that was not to blame.
    """
    rows: list[Row] = []
    backends = ["python"] if plan.quick else [*BACKENDS]
    progress.begin("restart", len(backends) * len(DEATHS))
    for backend in backends:
        with tempfile.TemporaryDirectory(prefix="mpiserve-") as mine:
            died = Path(comm.bcast(mine), "died")
            rounds = QUICK_ROUNDS if plan.quick else ROUNDS
            waits = couple(
                comm, "shared", mortal(backend, died), partial(run, died, rounds, progress)
            )
        if waits and comm.rank == 0:
            rows += figures(backend, waits)
    return rows


def mortal(backend: str, died: Path) -> Config:
    """Make the configuration of a model that a row can kill."""
    model = f"mpiserve.bench.models:{BACKENDS[backend]}"
    options = {"path": str(died)}
    keys: dict[str, Any] = {"arguments": options} if backend == "torch" else options
    limits = {"timeout_s": TIMEOUT, "restarts": 1_000_000}
    return doubles(backend, 64, model=model, options=keys, **limits)


def run(died: Path, rounds: int, progress: Progress, session: Session) -> Waits:
    """Let the model die in each way, so many times."""
    client, waits = Client(session), defaultdict(list)
    for number, death in enumerate(DEATHS):
        progress.step(death.__name__)
        for _ in range(rounds):
            if client.guilty:
                late = TIMEOUT if death in SILENT else 0.0
                waits[death.__name__].append(client.die(FATAL + number, died, late))
            else:
                client.go_on()
    return waits


class Client:
    """One of the ranks that ask all the time, of which the first one is to blame."""

    def __init__(self, session: Session) -> None:
        self._comm = session.comm
        self._service = session.service(SERVICE)
        self.guilty = self._comm.rank == 0
        self._asked = 0

    def die(self, row: float, died: Path, late: float) -> float:
        """Send a row that kills; return the milliseconds from the death to the next answer.

        A batch that others share is halved: the model dies of each part that has the row, and the
        last death counts. With `late` it dies so many seconds after it has written its time.
        """
        begun, end = self._comm.Ibarrier(), time.monotonic() + REST
        while not begun.Test() or time.monotonic() < end:
            self._ask()
        try:
            self._service(np.full(1, row))
        except ModelError:
            pass
        else:
            raise RuntimeError("the model should have died")
        answered = self._ask()
        self._comm.Ibarrier().Wait()
        death = float(died.read_text().split()[-1]) + late
        died.unlink()
        return 1e3 * (answered - death)

    def go_on(self) -> None:
        """Ask until the guilty client has an answer again."""
        self._comm.Ibarrier().Wait()
        over = self._comm.Ibarrier()
        while not over.Test():
            self._ask()

    def _ask(self) -> float:
        """Ask for a row; return when the answer came."""
        self._asked = self._asked % 1000 + 1
        x = np.full(1, -float(self._asked))
        if self._service(x)[0] != x[0]:
            raise RuntimeError("the service returned another row than it received")
        return time.monotonic()


def figures(backend: str, waits: Waits) -> Iterable[Row]:
    """Yield a row for each kind of death, and one for all."""
    every = [wait for found in waits.values() for wait in found]
    for kind, found in [*waits.items(), ("all", every)]:
        worst = {"deaths": len(found), "max_ms": round(max(found), 1), "bar": BAR}
        value = float(np.median(found))
        yield {"case": "restart", "backend": backend, "kind": kind, "value": value} | {
            "unit": "ms",
            **worst,
        }
