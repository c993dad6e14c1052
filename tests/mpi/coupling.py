"""Couples the ranks of a test: each side does its part, and all of them close."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.config import Config

if TYPE_CHECKING:
    from mpiserve import session

FOLDER = Path(__file__).resolve().parent  # where models.py lies
SIMULATION = "simulation"
INFERENCE = "inference"
NAP, FLYING = 0.01, 4  # seconds of each request; requests of a client and service under way


def tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    """Describe one tensor of a signature, without its rows."""
    return {"name": name, "dtype": dtype, "shape": [-1, *shape]}


def python(model: str, inputs: list[Any], outputs: list[Any], **settings: Any) -> dict[str, Any]:
    """Describe a service of a callable of models.py."""
    service = {"backend": "python", "model": f"models:{model}", "inputs": inputs}
    # As they are written: nothing is found out without warm-up.
    known = {"warmup": False, "rows": "independent", "input_memory": "view"}
    return service | {"outputs": outputs} | known | settings


def scaling(**settings: Any) -> dict[str, Any]:
    """Describe a service that answers 2 x + 1; rows of 32 bytes, so 12 of them ride in a slot."""
    x, y = tensor("x", "float64", 4), tensor("y", "float64", 4)
    return python("scale", [x], [y], **settings)


def couple(
    world: Any,
    services: dict[str, Any],
    simulate: Callable[[session.Session], None],
    **tables: Any,
) -> dict[str, int]:
    """Open a session, serve or simulate, close. Other tables of the configuration by name.

    Returns:
        The counters of this rank.
    """
    from mpiserve import session  # late: it starts MPI, and others read services here

    data = {"service": services, **tables}
    config = Config.from_dict(data, source="services of the test", folder=FOLDER)
    inference = world.role == INFERENCE
    with session.join(world.comm, world.role, config if inference else None) as joined:
        if inference:
            joined.serve()
        else:
            simulate(joined)
        return joined.info()["counters"]


def once_in(times: int, measure: Callable[[], None]) -> None:
    """Call it until it raises no AssertionError, as something else may take the cores meanwhile.

    What it measures is the same on each rank that calls it.
    """
    for left in reversed(range(times)):
        try:
            return measure()
        except AssertionError:
            if not left:
                raise


def total(world: Any, counters: dict[str, int], role: str, key: str) -> int:
    """Sum up one counter over the ranks of a role. Collective over the world."""
    mine = counters[key] if world.role == role else 0
    return sum(world.comm.allgather(mine))


def numbers(rows: int, *shape: int, start: float = 0.0) -> np.ndarray:
    """Rows that all differ."""
    count = rows * int(np.prod(shape))
    return (start + np.arange(count, dtype=np.float64)).reshape(rows, *shape)


def keep_busy(
    current: session.Session, factors: dict[str, float], *, settle: float, count: float
) -> np.ndarray:
    """Keep services busy; requests per second that each answers to all clients together.

    Args:
        current: The session of a simulation rank.
        factors: By service, what its answer is of what it gets: the seconds that it sleeps.
        settle: Seconds that do not count.
        count: Seconds that do, after these.
    """
    services = [current.service(name) for name in factors]
    flying: list[list[Any]] = [[] for _ in services]
    answered, nap = np.zeros(len(services)), np.full((1, 1), NAP, np.float32)
    current.comm.Barrier()
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < settle + count or any(flying):
        for i, (service, factor) in enumerate(zip(services, factors.values(), strict=True)):
            right = np.float32(factor) * nap
            done = [request for request in flying[i] if request.done()]
            assert all((request.result() == right).all() for request in done)
            flying[i] = [request for request in flying[i] if request not in done]
            answered[i] += len(done) if settle < now < settle + count else 0
            while now < settle + count and len(flying[i]) < FLYING:
                flying[i].append(service.submit(nap))
        time.sleep(NAP / 10)
    everywhere = np.zeros_like(answered)
    current.comm.Allreduce(answered, everywhere)
    return everywhere / count
