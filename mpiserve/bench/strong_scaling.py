"""Measure requests per second of 16 clients with 1, 2 and 4 services that return their inputs.

The set-up of the strong scaling of the system that docs/performance.md compares with: each client
has one request under way. Here the services are replicas of one, and the clients are C programs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench import _native
from mpiserve.bench.coupled import doubles, idle_barrier
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.config.partition import INFERENCE
from mpiserve.session import join

CLIENTS = 16
SERVICES = (1, 2, 4)
RANKS = CLIENTS + max(SERVICES)
BYTES = 8  # each way
AUTHORS_PEAK = 25279  # requests per second, with 4 services and 16 clients, a core for each

Speeds = dict[int, list[float]]  # requests per second of each turn, by services


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure all numbers of services in turns. Collective over RANKS; rank 0 gets the rows."""
    progress.begin("strong scaling", plan.repetitions * len(SERVICES))
    speeds: Speeds = defaultdict(list)
    for _ in range(plan.repetitions):
        for services in SERVICES:
            progress.step(f"{services} services, {CLIENTS} clients")
            speeds[services].append(turn(comm, plan, services))
    return [] if comm.rank else [row(services, found) for services, found in speeds.items()]


def turn(comm: MPI.Comm, plan: Plan, services: int) -> float:
    """Measure requests of all clients at the same time, from the first begin to the last end."""
    warm, rounds = plan.share(BYTES)
    world = comm.Split(comm.rank < CLIENTS + services, comm.rank)
    clients = comm.Split(comm.rank < CLIENTS, comm.rank)
    mine = None
    if comm.rank < CLIENTS:
        mine = asked(world, clients, warm, rounds)
    elif comm.rank < CLIENTS + services:
        with join(world, INFERENCE, doubles("echo", CLIENTS, replicas=services)) as session:
            session.serve()
    idle_barrier(comm)
    spans = [span for span in comm.allgather(mine) if span]
    clients.Free()
    world.Free()
    return CLIENTS * rounds / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def asked(world: MPI.Comm, clients: MPI.Comm, warm: int, rounds: int) -> tuple[float, float]:
    """Send requests one at a time; return begin and end."""
    client = _native.Client(world)
    try:
        client.sample(False, BYTES, 0, warm)
        idle_barrier(clients)
        begin = time.monotonic()
        client.sample(False, BYTES, 0, rounds)
        return begin, time.monotonic()
    finally:
        client.close()


def row(services: int, speeds: list[float]) -> dict[str, Any]:
    """Make a row of the report: the median of the turns."""
    return {
        "case": "strong_scaling",
        "services": services,
        "clients": CLIENTS,
        "authors_peak": AUTHORS_PEAK,
        "value": round(float(np.median(speeds))),
        "unit": "requests/s",
    }
