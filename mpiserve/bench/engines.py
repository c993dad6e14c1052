"""Measure what a served row costs beyond its engine: one row, from C, over shared memory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from mpiserve.bench import _native
from mpiserve.bench.coupled import alone, config, forced, serve, serves, settle
from mpiserve.bench.latency import WORD, Case, Samples, in_turns
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.config import Config
from mpiserve.serving.loading import Loader


class Net(NamedTuple):
    """A network of the table: a function of mpiserve.bench.models, and its features."""

    model: str
    width: int


NETS = {"8-32-32-8": Net("small", 8), "64-256-256-64": Net("mlp", 64)}
IN_PROCESS = "compiled, in process"
SERVED: dict[str, dict[str, Any]] = {
    "compiled": {"engine": "compiled"},
    "eager": {"engine": "eager", "isolate": False},
    "eager in a child": {"engine": "eager"},
    "answers kept": {"engine": "eager", "isolate": False, "cache_rows": 16},
}


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure both networks in turns. Collective over 2 ranks; rank 0 gets the rows."""
    progress.say("engines: compiling two networks, unless the cache has them")
    why = alone(comm, not_compiled)
    if why:
        progress.say(f"without the engines: {why}")
        return []
    rows = in_turns(comm, plan, progress, [case for name in NETS for case in cases(name)])
    return rows + [row for name in NETS for row in beside(name, rows)]


def not_compiled() -> str:
    """Compile the networks; say why it is not possible here, or nothing."""
    try:
        for name in NETS:
            native(name)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


@cache
def native(name: str) -> tuple[str, str]:
    """Return the library of a network's compiled engine, and what it makes it of."""
    backend = Loader(None, 0, lambda _: None).load(served(name, "compiled").services[0])
    try:
        assert backend.native
        return str(backend.native.library), backend.native.model
    finally:
        backend.close()


def served(name: str, way: str) -> Config:
    """Make the configuration of a network and of what runs it."""
    net, model = NETS[name], f"mpiserve.bench.models:{NETS[name].model}"
    keys = SERVED[way] | {"model": model, "max_batch_rows": 1, "threads": 1}
    return config("torch", [-1, net.width], "float32", **keys)


def cases(name: str) -> Iterable[Case]:
    """The engine in process, and through mpiserve."""
    labels = {"model": name}
    yield Case({"case": "engine", **labels, "engine": IN_PROCESS}, partial(in_process, name))
    for way in SERVED:
        row = {"case": "mpiserve", "client": "c", "transport": "shared", **labels, "engine": way}
        yield Case(row, partial(one_row, name, way))


def in_process(name: str, comm: MPI.Comm, plan: Plan) -> Samples:
    """Call the engine from C on the rank that would serve it."""
    width = NETS[name].width

    def work() -> np.ndarray:
        return _native.engine(*native(name), width, *plan.share(WORD))

    samples = alone(comm, work)
    return {} if samples is None else {size_of(name): samples}


def one_row(name: str, way: str, comm: MPI.Comm, plan: Plan) -> Samples:
    """Query one row from C."""
    with forced("shared"):
        if serves(comm):
            serve(comm, served(name, way))
            return {}
        client = _native.Client(comm)
        settle(served(name, way))
        try:
            return {size_of(name): client.row(NETS[name].width, *plan.share(WORD))}
        finally:
            client.close()


def size_of(name: str) -> int:
    """Return the bytes of a row."""
    return NETS[name].width * np.dtype(np.float32).itemsize


def beside(name: str, rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield what a served row costs beyond the engine, its ratio, and what eager is slower than."""
    p50 = {row["engine"]: row["p50_us"] for row in rows if row["model"] == name}
    if not p50:
        return
    more = round(p50["compiled"] - p50[IN_PROCESS], 3)
    yield {"case": "served_beyond_engine", "net": name, "value": more, "unit": "us"}
    ratio = round(p50["compiled"] / p50[IN_PROCESS], 3)
    yield {"case": "served_over_engine", "net": name, "value": ratio, "unit": "x"}
    for case, way in (("eager_over_compiled", "compiled"), ("eager_over_kept", "answers kept")):
        times = round(p50["eager"] / p50[way], 3)
        yield {"case": case, "net": name, "value": times, "unit": "x"}
