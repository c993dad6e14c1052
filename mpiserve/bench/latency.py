"""Measure round trips over size: lower bounds, alternatives and mpiserve, in turns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from mpiserve.bench import _native, rivals
from mpiserve.bench.coupled import (
    SERVICE,
    TRANSPORTS,
    alone,
    couple,
    doubles,
    forced,
    network,
    serve,
    serves,
    settle,
)
from mpiserve.bench.models import features, mlp
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.bench.stats import summary, timed
from mpiserve.config import Config
from mpiserve.session import Session

BACKENDS = ("echo", "torch")
CLIENTS = ("c", "python")
MEMORIES = ("user", "in_place")
WIRE = {"transport": "rma", "memory": "user"}  # the only cases between nodes
WIRE_FLOORS = ("floor_rma", "floor_put_get")
WORD = 8  # bytes of a double, and of the flag floor

Samples = dict[int, np.ndarray]  # nanoseconds, by bytes; only what rank 0 returns counts
Sampler = Callable[[MPI.Comm, int, int, int], Any]


class Case(NamedTuple):
    """A row of the table: its labels, and the function with which both ranks measure it once."""

    labels: dict[str, str]
    measure: Callable[[MPI.Comm, Plan], Samples]

    @property
    def title(self) -> str:
        """The name in the progress and the table."""
        return " ".join(self.labels.values())


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure all cases in turns. Collective over 2 ranks; rank 0 gets the rows."""
    with rivals.available(comm, progress) as others:
        cases = [*floors(), *rival_cases(others), *coupled_cases(plan.sizes), *network_cases()]
        return in_turns(comm, plan, progress, cases)


def measure_wire(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure the cases between nodes. Collective over 2 ranks; rank 0 gets the rows."""
    cases = [case for case in floors() if case.measure is not flag]
    cases.append(Case({"case": "floor_put_get"}, each_size(_native.floor_put_get)))
    cases += [case for case in coupled_cases(plan.sizes) if WIRE.items() <= case.labels.items()]
    rows = in_turns(comm, plan, progress, cases)
    return rows + [ratio for floor in WIRE_FLOORS for ratio in over(floor, rows)]


def over(floor: str, rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield the ratios of mpiserve's round trips to those of a lower bound."""
    p50 = {row["bytes"]: row["p50_us"] for row in rows if row["case"] == floor}
    for row in rows:
        if row["case"] == "mpiserve":
            labels = {key: row[key] for key in ("client", "backend", "bytes")}
            value = row["p50_us"] / p50[row["bytes"]]
            yield {"case": f"over_{floor}", **labels, "value": value, "unit": "x"}


def in_turns(
    comm: MPI.Comm, plan: Plan, progress: Progress, cases: list[Case]
) -> list[dict[str, Any]]:
    """Measure cases in turns. Collective over 2 ranks; rank 0 gets the rows."""
    samples: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    progress.begin("latency", plan.repetitions * len(cases))
    for _ in range(plan.repetitions):
        for number, case in enumerate(cases):
            progress.step(case.title)
            for size, found in case.measure(comm, plan).items():
                samples[number, size].append(found)
    if comm.rank > 0:
        return []
    return [
        {**cases[number].labels, "bytes": size, **summary(found)}
        for (number, size), found in sorted(samples.items(), key=lambda item: item[0])
    ]


def each_size(sampler: Sampler, part: float = 1.0) -> Callable[[MPI.Comm, Plan], Samples]:
    """Make a measurement of all sizes from a measurement of one size."""

    def run(comm: MPI.Comm, plan: Plan) -> Samples:
        return {size: sampler(comm, size, *plan.share(size, part)) for size in plan.sizes}

    return run


def floors() -> Iterable[Case]:
    """The lower bounds that the hardware and MPI set."""
    yield Case({"case": "floor_rma"}, each_size(_native.floor_rma))
    yield Case({"case": "floor_flag"}, flag)
    yield Case({"case": "send_recv_c"}, each_size(_native.send_recv))


def flag(comm: MPI.Comm, plan: Plan) -> Samples:
    """Two words on two cache lines, which have only one size."""
    return {WORD: _native.floor_flag(comm, WORD, *plan.share(WORD))}


def rival_cases(others: list[rivals.Rival]) -> Iterable[Case]:
    """The alternatives."""
    for rival in others:
        yield Case({"case": rival.name}, each_size(rival.sample, rival.part))


def coupled_cases(sizes: list[int]) -> Iterable[Case]:
    """Every way through mpiserve."""
    identity = {"model": "mpiserve.bench.models:identity"}
    rows = max(sizes) // WORD
    torch = doubles("torch", rows, dtype="float64", **identity)
    services = {"echo": doubles("echo", rows), "torch": torch}
    for backend, transport, client, memory in product(BACKENDS, TRANSPORTS, CLIENTS, MEMORIES):
        labels = {"client": client, "backend": backend, "transport": transport, "memory": memory}
        run = c_client if client == "c" else python_client
        yield Case(
            {"case": "mpiserve", **labels},
            partial(run, services[backend], transport, memory == "in_place"),
        )


def c_client(
    service: Config, transport: str, in_place: bool, comm: MPI.Comm, plan: Plan
) -> Samples:
    """Query from C."""
    with forced(transport):
        if serves(comm):
            serve(comm, service)
            return {}
        client = _native.Client(comm)
        settle(service)
        try:
            return {size: client.sample(in_place, size, *plan.share(size)) for size in plan.sizes}
        finally:
            client.close()


def python_client(
    service: Config,
    transport: str,
    in_place: bool,
    comm: MPI.Comm,
    plan: Plan,
    bound: bool = False,
) -> Samples:
    """Query from Python; bound: with the rank that serves on a core of its own."""

    def ask(session: Session) -> Samples:
        found = session.service(SERVICE)
        return {size: echo(found, in_place, size, *plan.share(size)) for size in plan.sizes}

    return couple(comm, transport, service, ask, bound) or {}


def echo(service: Any, in_place: bool, size: int, warm: int, rounds: int) -> np.ndarray:
    """Query a service of doubles with `size` bytes repeatedly, and check the last answer."""
    rows = size // WORD
    x = service.empty_input(rows) if in_place else np.empty(rows)
    y = service.empty_output(rows) if in_place else np.zeros(rows)
    x[:] = np.arange(rows)
    samples = timed(lambda: service(x, out=y), warm, rounds)
    if not np.array_equal(x, y):
        raise RuntimeError("the service returned other rows than it received")
    return samples


def network_cases() -> Iterable[Case]:
    """One row of the network: in process, and through mpiserve."""
    yield Case({"case": "in_process", "model": "mlp"}, in_process)
    labels = {"case": "mpiserve", "client": "python", "backend": "torch"}
    for transport in TRANSPORTS:
        yield Case(
            {**labels, "transport": transport, "memory": "user", "model": "mlp"},
            partial(one_row, transport),
        )


def in_process(comm: MPI.Comm, plan: Plan) -> Samples:
    """Call the network directly on the rank that would serve it."""
    x = features(1)

    def work() -> np.ndarray:
        import torch

        torch.set_num_threads(1)
        module, tensor = mlp(), torch.from_numpy(x)
        with torch.inference_mode():
            return timed(lambda: module(tensor), *network_rounds(plan))

    samples = alone(comm, work)
    return {} if samples is None else {x.nbytes: samples}


def one_row(transport: str, comm: MPI.Comm, plan: Plan) -> Samples:
    """Query one row of the network."""
    x, y = features(1), features(1)

    def ask(session: Session) -> Samples:
        service = session.service(SERVICE)
        return {x.nbytes: timed(lambda: service(x, out=y), *network_rounds(plan))}

    return couple(comm, transport, network(), ask) or {}


def network_rounds(plan: Plan) -> tuple[int, int]:
    """A round takes about a hundred times as long as one of 8 bytes."""
    return plan.share(WORD, 0.25)
