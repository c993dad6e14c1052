"""Measure starts of jobs: which engine `auto` takes, beside a timing of one's own, and when."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from timeit import Timer

import numpy as np

from mpiserve.backends.arrays import zeros
from mpiserve.bench import job
from mpiserve.bench.engines import NETS, Net
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress, Row
from mpiserve.config import Config, ServiceConfig
from mpiserve.serving.engines import Called
from mpiserve.serving.loading import Loader

STARTS, QUICK_STARTS = 10, 1
ENGINES = ("compiled", "eager")
LIMIT = 120.0  # seconds for a job
ROUNDS = 7
PROGRAM = Path(__file__).with_name("one_request.py")
TABLE = """\
[service.bench]
backend = "torch"
model = "mpiserve.bench.models:{net.model}"
engine = "{engine}"
threads = 1
max_batch_rows = 64
inputs = [{{ name = "x", dtype = "float32", shape = [-1, {net.width}] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, {net.width}] }}]
"""


def measure(plan: Plan, progress: Progress) -> list[Row]:
    """Start jobs with `auto` and with eager in turns, in this process's children.

    The engines are compiled before, so that each start is a second one.
    """
    starts = QUICK_STARTS if plan.quick else STARTS
    progress.begin("starts", len(NETS) * (1 + starts))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        for name, net in NETS.items():
            progress.step(f"{name}: its engines alone")
            fastest = fastest_engine(net, Path(folder))
            steps = (partial(progress.step, f"{name}: start {i + 1}") for i in range(starts))
            found = [pair(net, Path(folder), step) for step in steps]
            rows += figures(name, fastest, found)
    return rows


def pair(net: Net, folder: Path, step: partial[None]) -> tuple[str, float, float]:
    """Start a job with `auto` and one with eager; return the engine of the first, and seconds."""
    step()
    taken, seconds = start(net, "auto", folder)
    return taken, seconds, start(net, "eager", folder)[1]


def figures(name: str, fastest: str, found: list[tuple[str, float, float]]) -> Iterator[Row]:
    """Yield the rows of a network."""
    right = sum(taken == fastest for taken, _, _ in found)
    yield {"case": "auto_is_fastest", "net": name, "fastest": fastest} | {
        "value": right,
        "unit": f"of {len(found)} starts",
    }
    longer = median(auto - eager for _, auto, eager in found)
    yield {"case": "auto_starts_longer", "net": name, "value": round(longer, 3), "unit": "s"}


def start(net: Net, engine: str, folder: Path) -> tuple[str, float]:
    """Run a job that asks once; return the engine that answered, and the job's seconds."""
    config, answer = folder / "coupling.toml", folder / "engine"
    config.write_text(TABLE.format(net=net, engine=engine))
    begin = time.monotonic()
    job.run(2, ["run", str(config), str(PROGRAM), str(answer)], LIMIT)
    seconds = time.monotonic() - begin
    return "compiled" if answer.read_text().startswith("compiled") else "eager", seconds


# ---- a timing of one's own


def fastest_engine(net: Net, folder: Path) -> str:
    """Time both engines in this process at one row and at the most: the geometric mean counts."""
    times = {engine: seconds(service(net, engine, folder)) for engine in ENGINES}
    return min(times, key=times.__getitem__)


def service(net: Net, engine: str, folder: Path) -> ServiceConfig:
    """Read the table of a service with an engine."""
    path = folder / "alone.toml"
    path.write_text(TABLE.format(net=net, engine=engine))
    return Config.load(path).services[0]


def seconds(service: ServiceConfig) -> float:
    """Return the geometric mean of the seconds of a batch."""
    backend = Loader(None, 0, lambda _: None).load(service)
    called, counts = Called(backend, service), (1, service.max_batch_rows)
    try:
        with backend.serving():
            return prod(best(called, service, rows) for rows in counts) ** (1 / len(counts))
    finally:
        backend.close()


def best(called: Called, service: ServiceConfig, rows: int) -> float:
    """Return the seconds of a batch of random rows: the fastest of some rounds."""
    inputs, outputs = zeros(service.inputs, rows), zeros(service.outputs, rows)
    for array in inputs:
        array[...] = np.random.default_rng(rows).standard_normal(array.shape)
    timer = Timer(lambda: called.run(inputs, outputs, lambda _: None))
    calls, _ = timer.autorange()
    return min(timer.repeat(ROUNDS, max(1, calls // 10))) / max(1, calls // 10)
