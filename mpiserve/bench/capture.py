"""Measure what a capture costs a simulation that sends 1,000 requests a second, and how it is read.

A step of the simulation is work of always the same amount, and a request. Sessions with and without
a capture take turns, so that other load on the machine affects both alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, couple, idle_barrier
from mpiserve.bench.latency import WORD
from mpiserve.bench.plan import KIB, LEAST_WARM, MIB, Plan
from mpiserve.bench.report import Progress, Row
from mpiserve.config import Config
from mpiserve.observe import capture_files as files
from mpiserve.observe.capture_data import Capture
from mpiserve.session import Session

RATE = 1000  # requests a second
WORK_S = 0.99 / RATE  # of a step, beside the request
TURNS, SECONDS = 10, 5.0  # of each kind
QUICK_TURNS, QUICK_SECONDS = 1, 1.5
WIDTH = KIB // WORD  # doubles of a request, which is one row
READS, EPOCHS, TOGETHER = 5, 4, 4096  # measurements; times that each reads all rows; rows at once
LARGE = 31 * MIB
PRICE_BAR, READ_BAR = "<= 1.03", ">= 0.8"

Numbers = Iterable[Any]  # of rows: slices, or arrays in ascending order


class Taken(NamedTuple):
    """What a session took: nanoseconds of each step, and of its request; CPU seconds of all."""

    steps: np.ndarray
    requests: np.ndarray
    cpu: float


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[Row]:
    """Measure with and without a capture, in turns; then read it. Collective over 2 ranks."""
    turns, seconds = (QUICK_TURNS, QUICK_SECONDS) if plan.quick else (TURNS, SECONDS)
    progress.begin("capture", 2 * turns)
    calls, steps = calls_that_take(WORK_S), int(seconds * RATE)
    found: dict[bool, list[Taken]] = {False: [], True: []}
    with common_folder(comm) as folder:
        for turn in range(turns):
            for captured, taken in found.items():
                progress.step(f"turn {turn + 1}, {'with' if captured else 'without'} a capture")
                service = echo(folder if captured else None)
                took = couple(comm, "shared", service, partial(ask, calls, steps))
                taken.extend([took] if took else [])
        idle_barrier(comm)  # the files are whole
        rows = [] if comm.rank else [price(found, folder), *reads(folder)]
        idle_barrier(comm)
    return rows


@contextmanager
def common_folder(comm: MPI.Comm) -> Iterator[Path]:
    """A folder of both ranks; the first one makes and removes it. Collective."""
    if comm.rank > 0:
        yield Path(comm.bcast(None))
        return
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        yield Path(comm.bcast(folder))


def echo(folder: Path | None) -> Config:
    """Make the configuration of the service; None: it is not captured."""
    tensor = {"dtype": "float64", "shape": [-1, WIDTH]}
    sides = {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
    service = {"backend": "echo", "max_batch_rows": 64, **sides}
    capture = {} if folder is None else {"capture": {"folder": str(folder)}}
    return Config.from_dict({"service": {SERVICE: service}, **capture}, source="mpiserve bench")


# ---- what it costs


def work(calls: int, x: np.ndarray) -> None:
    """Keep the core busy with always the same amount of work."""
    for _ in range(calls):
        np.sqrt(x, out=x)


def calls_that_take(seconds: float) -> int:
    """Return how many calls of `work` take so long."""
    x, tried, times = np.ones(WIDTH), 100, []
    for _ in range(100):
        begin = time.perf_counter()
        work(tried, x)
        times.append(time.perf_counter() - begin)
    return max(1, round(seconds * tried / float(np.median(times))))


def ask(calls: int, steps: int, session: Session) -> Taken:
    """Take steps."""
    service, clock = session.service(SERVICE), time.perf_counter_ns
    field, x, y = np.ones(WIDTH), np.ones((1, WIDTH)), np.zeros((1, WIDTH))
    for _ in range(LEAST_WARM):
        service(x, out=y)
    times, cpu = np.zeros((3, steps), np.int64), time.process_time()
    for i in range(steps):
        session.step()
        times[0, i] = clock()
        work(calls, field)
        times[1, i] = clock()
        service(x, out=y)
        times[2, i] = clock()
    begin, asked, end = times
    return Taken(end - begin, end - asked, time.process_time() - cpu)


def price(found: dict[bool, list[Taken]], folder: Path) -> Row:
    """Compare the steps, the requests and the time on the core."""
    steps = {kind: p50_us([each.steps for each in taken]) for kind, taken in found.items()}
    requests = {kind: p50_us([each.requests for each in taken]) for kind, taken in found.items()}
    cpu = {kind: float(np.median([each.cpu for each in taken])) for kind, taken in found.items()}
    sent = sum(LEAST_WARM + len(each.steps) for each in found[True])
    return {
        "case": "capture",
        "requests_per_s": round(1e6 / steps[True]),
        "bytes": WIDTH * WORD,
        "request_with_us": round(requests[True], 3),
        "request_without_us": round(requests[False], 3),
        "requests": round(requests[True] / requests[False], 4),
        "cpu": round(cpu[True] / cpu[False], 4),
        "kept": round(len(Capture(folder, SERVICE)) / sent, 4),
        "value": round(steps[True] / steps[False], 4),
        "unit": "ratio",
        "bar": PRICE_BAR,
    }


def p50_us(pieces: list[np.ndarray]) -> float:
    """Return the median of nanoseconds, in microseconds."""
    return float(np.median(np.concatenate(pieces))) / 1000


# ---- how it is read


def reads(folder: Path) -> Iterator[Row]:
    """Read all rows of one file with h5py itself and with a DataLoader, in turns."""
    path = folder / "all.h5"
    files.merge([part.path for part in files.listed(folder)], path, {})
    rows = len(Capture(path, SERVICE))
    np.empty(LARGE, np.uint8)  # since glibc has freed it, it keeps the memory of batches: no faults
    for order, numbers in {"in order": in_order, "at random": at_random}.items():
        ways = {"h5py": partial(by_h5py, path, numbers), "loader": partial(by_loader, path, order)}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(READS):
            for way, read in ways.items():
                begin = time.perf_counter()
                if read(rows) != EPOCHS * rows:
                    raise RuntimeError(f"{way} has read another number of rows")
                seconds[way].append(time.perf_counter() - begin)
        rates = {
            way: EPOCHS * rows * 2 * KIB / float(np.median(all_)) for way, all_ in seconds.items()
        }
        yield {
            "case": "capture_read",
            "order": order,
            "rows": rows,
            **{f"{way}_mb_per_s": round(rate / 1e6) for way, rate in rates.items()},
            "value": round(rates["loader"] / rates["h5py"], 3),
            "unit": "x",
            "bar": READ_BAR,
        }


def in_order(rows: int) -> Numbers:
    """Yield slices of all rows, one after the other."""
    return (slice(begin, begin + TOGETHER) for begin in range(0, rows, TOGETHER))


def at_random(rows: int) -> Numbers:
    """Yield all rows in pieces; h5py wants the numbers of each in ascending order."""
    mixed = np.random.default_rng().permutation(rows)
    return (np.sort(mixed[begin : begin + TOGETHER]) for begin in range(0, rows, TOGETHER))


def by_h5py(path: Path, numbers: Callable[[int], Numbers], rows: int) -> int:
    """Read inputs and outputs as a program does that knows nothing of captures."""
    import h5py

    with h5py.File(path) as file:
        x, y = file[f"{SERVICE}/inputs/x"], file[f"{SERVICE}/outputs/y"]
        batches = ((x[some], y[some]) for _ in range(EPOCHS) for some in numbers(rows))
        return sum(min(len(inputs), len(outputs)) for inputs, outputs in batches)


def by_loader(path: Path, order: str, rows: int) -> int:
    """Read them by torch, in this process."""
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    capture: Any = Capture(path, SERVICE)
    batches: Any = [*in_order(rows)]
    if order != "in order":
        batches = BatchSampler(RandomSampler(capture), TOGETHER, drop_last=False)
    loader: Any = DataLoader(capture, sampler=batches, batch_size=None)
    pairs = (pair for _ in range(EPOCHS) for pair in loader)
    return sum(min(len(inputs["x"]), len(outputs["y"])) for inputs, outputs in pairs)
