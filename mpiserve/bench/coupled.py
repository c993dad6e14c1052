"""Sessions of the benchmark: the last rank of the world serves, the others are clients."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from mpi4py import MPI

from mpiserve.bench.models import FEATURES
from mpiserve.bench.places import apart
from mpiserve.config import Config
from mpiserve.config.partition import INFERENCE, SIMULATION
from mpiserve.session import Session, join

TRANSPORTS = ("shared", "rma")
SERVICE = "bench"
VARIABLE = "MPISERVE_TRANSPORT"
NAP = 0.002  # seconds between two polls of a rank that waits
# Seconds after a start. Until then the fork server imports for the next child what the first one
# has imported: beside that, on two cores, torch's identity took 56 us in place of 35.
SETTLED = 1.0

T = TypeVar("T")


def config(backend: str, shape: list[int], kind: str, **keys: Any) -> Config:
    """Make the configuration of one service whose output has the shape of its input."""
    service = {
        "backend": backend,
        **({"engine": "eager"} if backend == "torch" else {}),  # whatever the cache has
        "inputs": [{"name": "x", "dtype": kind, "shape": shape}],
        "outputs": [{"name": "y", "dtype": kind, "shape": shape}],
        **keys,
    }
    return Config.from_dict({"service": {SERVICE: service}}, source="mpiserve bench")


def doubles(backend: str, rows: int, /, **keys: Any) -> Config:
    """Make the configuration of a service of doubles, with up to `rows` of them."""
    return config(backend, [-1], "float64", max_batch_rows=rows, **keys)


def network(**keys: Any) -> Config:
    """Make the configuration of the 64-256-256-64 network, with torch."""
    return config("torch", [-1, FEATURES], "float32", model="mpiserve.bench.models:mlp", **keys)


def serves(comm: MPI.Comm) -> bool:
    """Return whether this rank serves."""
    return comm.rank == comm.size - 1


@contextmanager
def forced(transport: str) -> Iterator[None]:
    """Make sessions that are opened inside the context use one transport."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = transport
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def serve(comm: MPI.Comm, service: Config) -> None:
    """Serve until every simulation rank has left."""
    with join(comm, INFERENCE, service) as session:
        session.serve()


def settle(service: Config) -> None:
    """Wait, as a client, until the start of a service that has a child is over."""
    if service.services[0].backend != "echo":
        time.sleep(SETTLED)


def couple(
    comm: MPI.Comm,
    transport: str,
    service: Config,
    ask: Callable[[Session], T],
    bound: bool = False,
) -> T | None:
    """Run a function on the simulation ranks of a new session. Collective.

    Args:
        comm: The ranks of the benchmark.
        transport: The transport of the session.
        service: The configuration of the service.
        ask: The function, called with the session.
        bound: Bind the rank that serves to a core of its own.

    Returns:
        The result of the function; None on the rank that serves.
    """
    with forced(transport), apart(comm, serves(comm)) if bound else nullcontext():
        if serves(comm):
            serve(comm, service)
            return None
        with join(comm, SIMULATION) as session:
            settle(service)
            return ask(session)


def idle_barrier(comm: MPI.Comm) -> None:
    """Wait for all ranks, without using a core that another rank needs."""
    arrived = comm.Ibarrier()
    while not arrived.Test():
        time.sleep(NAP)


def alone(comm: MPI.Comm, work: Callable[[], T]) -> T | None:
    """Run work on the rank that serves while the others sleep; every rank gets its result."""
    result = work() if serves(comm) else None
    idle_barrier(comm)
    return comm.bcast(result, root=comm.size - 1)
