"""Measure what the process of a model costs a request: the hand-over, and torch's identity."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench import _native
from mpiserve.bench.coupled import TRANSPORTS, alone, doubles
from mpiserve.bench.latency import (
    WORD,
    Case,
    Samples,
    c_client,
    each_size,
    in_turns,
    over,
    python_client,
)
from mpiserve.bench.places import together
from mpiserve.bench.plan import KIB, MIB, Plan
from mpiserve.bench.report import Progress, Row
from mpiserve.bench.stats import timed

FLOOR = "floor_rma"
SIZES = (WORD, KIB, MIB, 16 * MIB)  # bytes each way
LARGE = MIB  # from here on it matters how often the payload is copied
WAYS: dict[str, dict[str, Any]] = {"in the rank": {"isolate": False}, "in a child": {}}
# Where Linux runs the processes: where it likes, or the rank on a core of its own, as `bind` and
# most launchers have it. The child then has that core too, which needs no wake of another one.
PLACES = {"free": False, "bound": True}
WAKES = {"floor_wake": _native.floor_wake, "floor_wake_both": _native.floor_wake_both}
HANDOVERS = {
    "handover_spinning": _native.handover_spinning,
    "handover_asleep": _native.handover_asleep,
    "handover_both_asleep": _native.handover_both_asleep,
}
ON_ONE_CORE = {
    "floor_wake_one_core": _native.floor_wake_both,
    "handover_one_core": _native.handover_both_asleep,
}
OVER_WAKES = {
    "handover_asleep": "floor_wake",
    "handover_both_asleep": "floor_wake_both",
    "handover_one_core": "floor_wake_one_core",
}
# What must be seen: microseconds, copies of the payload, or times as long.
HANDOVER_BARS = {
    "handover_spinning": 2,
    "handover_asleep": 8,
    "handover_both_asleep": 8,
    "handover_one_core": 8,
}
MORE_BAR, COPIES_BAR, TIMES_BAR, FLOOR_BAR = 8, 0.5, 1.1, 4
ENOUGH = 3  # cores: for a client, a head and a child


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[Row]:
    """Measure all cases in turns. Collective over 2 ranks; rank 0 gets the rows."""
    sizes = [size for size in SIZES if size in plan.rounds]
    smaller = Plan({size: plan.rounds[size] for size in sizes}, plan.repetitions, plan.quick)
    cases = [*handovers(), *identities(max(sizes)), *on_one_node(max(sizes))]
    rows = in_turns(comm, smaller, progress, cases)
    return [*rows, *judged(rows, os.cpu_count() or 1)] if rows else []


# ---- cases


def handovers() -> Iterable[Case]:
    """A call to a child; to compare with, what wakes a sleeper, and a copy of the payload."""
    for name, sampler in {**WAKES, **HANDOVERS}.items():
        yield Case({"case": name}, partial(a_word, sampler))
    for name, sampler in ON_ONE_CORE.items():
        yield Case({"case": name}, partial(on_one_core, sampler))
    yield Case({"case": "copy"}, each_size(copy))


def a_word(sampler: Callable[..., Any], comm: MPI.Comm, plan: Plan) -> Samples:
    """Measure what has only one size."""
    return {WORD: sampler(comm, WORD, *plan.share(WORD, 0.25))}


def on_one_core(sampler: Callable[..., Any], comm: MPI.Comm, plan: Plan) -> Samples:
    """Measure it with both ranks on the same core, as a bound rank and its child."""
    with together():
        return a_word(sampler, comm, plan)


def copy(comm: MPI.Comm, size: int, warm: int, rounds: int) -> Any:
    """Copy so many bytes within one process."""
    x, y = np.ones(size // WORD), np.zeros(size // WORD)
    return alone(comm, lambda: timed(lambda: np.copyto(y, x), warm, rounds))


def identities(most: int) -> Iterable[Case]:
    """Torch's identity from the inference rank itself, and from a process of its own."""
    model = {"model": "mpiserve.bench.models:identity", "dtype": "float64"}
    for transport, place, (way, keys) in product(TRANSPORTS, PLACES, WAYS.items()):
        service = doubles("torch", most // WORD, **model, **keys)
        labels = {"backend": "torch", "transport": transport, "engine": way, "place": place}
        ask = partial(python_client, service, transport, False, bound=PLACES[place])
        yield Case({"case": "identity", "client": "python", **labels}, ask)


def on_one_node(most: int) -> Iterable[Case]:
    """Echo over rma, which has a window of MPI_Win_allocate, and the floor over the same."""
    yield Case({"case": FLOOR}, each_size(_native.floor_rma))
    labels = {"client": "c", "backend": "echo", "transport": "rma", "memory": "user"}
    service = doubles("echo", most // WORD)
    yield Case({"case": "mpiserve", **labels}, partial(c_client, service, "rma", False))


# ---- what must be seen


def judged(rows: list[Row], cores: int) -> Iterable[Row]:
    """Yield what has a bar: hand-over, process and copies beyond the rank, rma over its floor."""
    keys = ("case", "transport", "place", "engine", "bytes")
    p50 = {tuple(row.get(key) for key in keys): row["p50_us"] for row in rows}
    for name, bar in HANDOVER_BARS.items():
        yield {"case": name, "value": p50[name, None, None, None, WORD], "unit": "us", "bar": bar}
    for name, floor in OVER_WAKES.items():
        value = p50[name, None, None, None, WORD] / p50[floor, None, None, None, WORD]
        yield {"case": "over_floor_wake", "of": name, "value": value, "unit": "x"}
    sizes = sorted({row["bytes"] for row in rows})
    for transport, place, size in product(TRANSPORTS, PLACES, sizes):
        rank, child = (p50["identity", transport, place, way, size] for way in WAYS)
        labels = {"transport": transport, "place": place, "bytes": size}
        if size < LARGE:
            yield from ({**row, **labels} for row in beyond(rank, child, cores))
        else:
            copies = (child - rank) / p50["copy", None, None, None, size]
            # Over rma the window is MPI's, which no other process can map.
            bars = {"bar": COPIES_BAR} if transport == "shared" else {}
            yield {"case": "isolated_copies", **labels, "value": copies, "unit": "copies", **bars}
    yield from ({**row, "bar": FLOOR_BAR} for row in over(FLOOR, rows))


def beyond(rank: float, child: float, cores: int) -> Iterable[Row]:
    """Compare microseconds: where cores are few a child sleeps between calls, else it spins."""
    bars = [{}, {"bar": TIMES_BAR}] if cores >= ENOUGH else [{"bar": MORE_BAR}, {}]
    yield {"case": "isolated_more", "value": child - rank, "unit": "us", **bars[0]}
    yield {"case": "isolated_over_rank", "value": child / rank, "unit": "x", **bars[1]}
