"""Measure whether a simulation that computes waits for its model: submit, compute, fetch."""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, TRANSPORTS, couple, doubles
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.session import Session

MODEL_MS = 15
COMPUTE_MS = 20
ROWS = 8192  # 64 KiB: too much for a slot
TEST_EVERY = 0.001  # seconds between two tests, if the client tests


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure both transports, with and without calls in between. Collective over 2 ranks."""
    cases = list(product(TRANSPORTS, ("none", "test")))
    progress.begin("overlap", len(cases))
    rows = []
    for transport, calls in cases:
        progress.step(f"overlap {transport}, calls in between: {calls}")
        model = {"model": "mpiserve.bench.models:Busy", "options": {"ms": MODEL_MS}}
        known = {"warmup": False, "rows": "independent", "input_memory": "view"}
        service = doubles("python", ROWS, **known, **model)
        found = couple(comm, transport, service, partial(ask, plan, calls == "test"))
        if found is not None:
            rows.append(row(found, transport, calls))
    return rows


def ask(plan: Plan, looks: bool, session: Session) -> list[float]:
    """Return the seconds of each submit, compute and fetch."""
    service = session.service(SERVICE)
    x, y = np.ones(ROWS), np.zeros(ROWS)
    service(x, out=y)  # allocates memory before the measurement
    times = []
    for _ in range(3 if plan.quick else 30):
        begin = time.perf_counter()
        pending = service.submit(x, out=y)
        compute(pending if looks else None)
        pending.result()
        times.append(time.perf_counter() - begin)
    return times


def compute(pending: Any) -> None:
    """Keep the core busy; test the pending request now and then, if there is one."""
    now = time.perf_counter()
    end, look = now + COMPUTE_MS / 1000, now + TEST_EVERY
    while now < end:
        if pending is not None and now >= look:
            pending.done()
            look = now + TEST_EVERY
        now = time.perf_counter()


def row(times: list[float], transport: str, calls: str) -> dict[str, Any]:
    """Compare the median with the computing alone."""
    return {
        "case": "overlap",
        "transport": transport,
        "calls": calls,
        "compute_ms": COMPUTE_MS,
        "model_ms": MODEL_MS,
        "value": round(float(np.median(times)) * 1000 / COMPUTE_MS, 4),
        "unit": "ratio",
    }
