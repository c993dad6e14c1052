"""Measure what derivatives cost beside the answer of the same rank, from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, config, couple
from mpiserve.bench.engines import NETS
from mpiserve.bench.plan import KIB, Plan
from mpiserve.bench.report import Progress
from mpiserve.bench.stats import timed
from mpiserve.config import Config
from mpiserve.session import Session

ROWS = 32
TURN = 20  # calls of one kind, before the next kind takes its turn
BARS = {"vjp": 4.5}  # times the forward call
KINDS = ("forward", "vjp", "jvp", "jacobian")
WAYS: dict[str, dict[str, Any]] = {"in the rank": {"isolate": False}, "in a child": {}}

Times = dict[str, np.ndarray]  # nanoseconds of each call, by kind


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure both networks, with and without a child. Collective over 2 ranks."""
    progress.begin("derivatives", len(NETS) * len(WAYS))
    rows: list[dict[str, Any]] = []
    for name, net in NETS.items():
        for way, keys in WAYS.items():
            progress.step(f"{name}, {way}")
            service = served(net.model, net.width, keys)
            times = couple(comm, "shared", service, partial(ask, plan, net.width))
            if times is not None:
                rows += beside(name, way, times)
    return rows


def served(model: str, width: int, keys: dict[str, Any]) -> Config:
    """Make the configuration of a network and its derivatives."""
    keys = keys | {"derivatives": [kind for kind in KINDS if kind != "forward"]}
    model = f"mpiserve.bench.models:{model}"
    known = {"max_batch_rows": ROWS, "threads": 1, "rows": "independent"}
    return config("torch", [-1, width], "float32", model=model, **known, **keys)


def ask(plan: Plan, width: int, session: Session) -> Times:
    """Call the services in turns of a few calls, so that other load affects all alike."""
    calls = {kind: call(session, kind, width) for kind in KINDS}
    turns = max(1, plan.rounds[KIB] // 50 // TURN)  # a Jacobian takes milliseconds
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for _ in range(turns):
        for kind in KINDS:
            found[kind].append(timed(calls[kind], 2, TURN))
    return {kind: np.concatenate(samples) for kind, samples in found.items()}


def call(session: Session, kind: str, width: int) -> Callable[[], object]:
    """Make a call of one service, with memory that it uses again."""
    service = session.service(SERVICE if kind == "forward" else f"{SERVICE}.{kind}")
    draw = np.random.default_rng(ROWS)
    given = [draw.standard_normal(shape_of(tensor), np.float32) for tensor in service.inputs]
    outputs = tuple(np.zeros(shape_of(tensor), np.float32) for tensor in service.outputs)
    return partial(service, *given, out=outputs if len(outputs) > 1 else outputs[0])


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor of ROWS rows."""
    return (ROWS, *tensor.shape[1:])


def beside(name: str, way: str, times: Times) -> Iterable[dict[str, Any]]:
    """Yield the forward call, and by how much each derivative takes longer, with its bar."""
    p50 = {kind: float(np.median(samples)) for kind, samples in times.items()}
    labels = {"net": name, "rows": ROWS, "engine": way}
    forward = round(p50["forward"] / 1000, 1)
    yield {"case": "forward", **labels, "value": forward, "unit": "us"}
    for kind in KINDS[1:]:
        bar = {"bar": f"<= {BARS[kind]}"} if kind in BARS else {}
        ratio = round(p50[kind] / p50["forward"], 3)
        yield {"case": f"{kind}_over_forward", **labels, **bar, "value": ratio, "unit": "x"}
