"""Sessions of the benchmark: the last rank of the world serves, the others ask."""

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
NAP = 0.002  # seconds between two looks of a rank that rests

T = TypeVar("T")


def config(backend: str, shape: list[int], kind: str, **keys: Any) -> Config:
    """Make the configuration of one service that gives back the shape that it gets."""
    service = {
        "backend": backend,
        "inputs": [{"name": "x", "dtype": kind, "shape": shape}],
        "outputs": [{"name": "y", "dtype": kind, "shape": shape}],
        **keys,
    }
    return Config.from_dict({"service": {SERVICE: service}}, source="mpiserve bench")


def doubles(backend: str, rows: int, /, **keys: Any) -> Config:
    """Make the configuration of a service of doubles, up to so many of them."""
    return config(backend, [-1], "float64", max_batch_rows=rows, **keys)


def network(**keys: Any) -> Config:
    """Make the configuration of the 64-256-256-64 network, with torch."""
    return config("torch", [-1, FEATURES], "float32", model="mpiserve.bench.models:mlp", **keys)


def serves(comm: MPI.Comm) -> bool:
    """Tell whether this rank is the one that serves."""
    return comm.rank == comm.size - 1


@contextmanager
def forced(transport: str) -> Iterator[None]:
    """Make sessions that are opened meanwhile use one transport."""
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


def couple(
    comm: MPI.Comm,
    transport: str,
    service: Config,
    ask: Callable[[Session], T],
    bound: bool = False,
) -> T | None:
    """Run ask on the simulation ranks of a session of its own. Collective.

    Args:
        comm: The ranks of the benchmark.
        transport: What the session uses.
        service: What is served.
        ask: Called with the session.
        bound: Give the rank that serves a core of its own.

    Returns:
        What ask returned; None on the rank that serves.
    """
    with forced(transport), apart(comm, serves(comm)) if bound else nullcontext():
        if serves(comm):
            serve(comm, service)
            return None
        with join(comm, SIMULATION) as session:
            return ask(session)


def rest(comm: MPI.Comm) -> None:
    """Wait for all ranks without taking a core from those that work."""
    arrived = comm.Ibarrier()
    while not arrived.Test():
        time.sleep(NAP)


def alone(comm: MPI.Comm, work: Callable[[], T]) -> T | None:
    """Run work on the rank that serves while the others sleep; every rank gets its result."""
    result = work() if serves(comm) else None
    rest(comm)
    return comm.bcast(result, root=comm.size - 1)
