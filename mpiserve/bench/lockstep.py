"""Three clients in lock-step and one server: how well batches use the model's core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench import job
from mpiserve.bench.coupled import SERVICE, alone, couple, network, rest, serves
from mpiserve.bench.machine import version
from mpiserve.bench.models import features, mlp
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.errors import Code, Error
from mpiserve.session import Session

CLIENTS = 3
ROWS = 1024  # of each client
DELAY_US = 20000
STEPS, BLOCKS, WARM = 30, 3, 3
TRANSPORT = "shared"
STOP = b""

Speeds = dict[tuple[str, int], list[float]]  # rows per second of each block, by system and clients


class Group:
    """The ranks that ask, of which some do, and how many steps they take at once."""

    def __init__(self, comm: MPI.Comm, plan: Plan) -> None:
        self.comm = comm
        self.steps, self.blocks = (3, 1) if plan.quick else (STEPS, BLOCKS)
        self.repetitions = 1 if plan.quick else 2

    def speeds(self, active: int, step: Callable[[], object] | None) -> list[float]:
        """Run blocks of steps on the active ranks, and return rows per second of each."""
        spans = [self.block(step) for _ in range(self.blocks)]
        return [active * ROWS * self.steps / span for span in spans]

    def block(self, step: Callable[[], object] | None) -> float:
        """Run steps, and return the seconds from the first rank's begin to the last one's end."""
        rest(self.comm)
        mine = self.times(step) if step else None
        rest(self.comm)
        spans = [span for span in self.comm.allgather(mine) if span]
        return max(end for _, end in spans) - min(begin for begin, _ in spans)

    def times(self, step: Callable[[], object]) -> tuple[float, float]:
        """Fall into step with the other ranks, then return begin and end of the steps."""
        for _ in range(WARM):
            step()
        begin = time.monotonic()
        for _ in range(self.steps):
            step()
        return begin, time.monotonic()


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure throughput and census. Collective over 4 ranks; rank 0 gets the rows."""
    simulation = comm.Split(serves(comm))
    group = Group(simulation, plan)
    speeds: Speeds = defaultdict(list)
    progress.begin("lock-step", group.repetitions * (2 * CLIENTS + 1) + 1)
    for _ in range(group.repetitions):
        progress.step("in process, while the other ranks sleep")
        for name, found in (alone(comm, lambda: in_process(group)) or {}).items():
            speeds[name, CLIENTS] += found
        for active in range(1, CLIENTS + 1):
            progress.step(f"mpiserve, {active} clients")
            speeds["mpiserve", active] += coupled(comm, group, active)
        zeromq(comm, group, progress, speeds)
    progress.step("census")
    census = census_wait(comm, plan)
    simulation.Free()
    return [*throughput_rows(speeds), efficiency_row(speeds), census] if comm.rank == 0 else []


def in_process(group: Group) -> dict[str, list[float]]:
    """Run the network in a process that has nothing to do with MPI."""
    size = [CLIENTS * ROWS, group.blocks, group.steps]
    command = [sys.executable, "-m", "mpiserve.bench.baseline", *map(str, size)]
    done = subprocess.run(
        command, env=job.scrubbed(os.environ), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.splitlines() or [""]
        raise Error(Code.EMODEL, f"the in-process baseline failed: {said[-1]}")
    return json.loads(done.stdout)


def coupled(comm: MPI.Comm, group: Group, active: int) -> list[float]:
    """Ask from so many ranks. The others look nothing up, so no batch waits for them."""

    def ask(session: Session) -> list[float]:
        if session.comm.rank >= active:
            return group.speeds(active, None)
        service = session.service(SERVICE)
        x, y = features(ROWS), features(ROWS)
        return group.speeds(active, lambda: service(x, out=y))

    return couple(comm, TRANSPORT, network(), ask) or []


def zeromq(comm: MPI.Comm, group: Group, progress: Progress, speeds: Speeds) -> None:
    """Measure a REP worker that calls the network, and so many REQ clients."""
    for active in range(1, CLIENTS + 1):
        progress.step(f"zeromq, {active} clients")
        if not comm.bcast(version("pyzmq")):
            continue
        with tempfile.TemporaryDirectory(prefix="mpiserve-") as mine:
            address = f"ipc://{comm.bcast(mine, root=comm.size - 1)}/zeromq"
            if serves(comm):
                worker(comm, address, active)
            else:
                speeds["zeromq", active] += requests(comm, group, address, active)
            rest(comm)


def worker(comm: MPI.Comm, address: str, active: int) -> None:
    """Answer until every client has said that it stops."""
    import torch
    import zmq

    torch.set_num_threads(1)
    module = mlp()
    with zmq.Context() as context, context.socket(zmq.REP) as socket, torch.inference_mode():
        socket.bind(address)
        rest(comm)
        while active:
            message = socket.recv(copy=False)
            if not len(message):
                active -= 1
                socket.send(STOP)
                continue
            x = torch.frombuffer(message.buffer, dtype=torch.float32).reshape(ROWS, -1)
            socket.send(module(x).numpy(), copy=False)


def requests(comm: MPI.Comm, group: Group, address: str, active: int) -> list[float]:
    """Ask the worker from the first ranks."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        rest(comm)
        if group.comm.rank >= active:
            return group.speeds(active, None)
        socket.connect(address)
        x = features(ROWS)

        def step() -> None:
            socket.send(x.data, copy=False)
            np.frombuffer(socket.recv(copy=False).buffer, np.float32).reshape(x.shape)

        speeds = group.speeds(active, step)
        socket.send(STOP)
        socket.recv()
        return speeds


def census_wait(comm: MPI.Comm, plan: Plan) -> dict[str, Any]:
    """Measure how long clients wait beyond the model, where a timer would be slow."""

    def ask(session: Session) -> list[tuple[float, int]]:
        service = session.service(SERVICE)
        x, y = features(ROWS), features(ROWS)
        session.comm.Barrier()
        found = []
        for _ in range(5 if plan.quick else 50):
            begin = time.perf_counter_ns()
            pending = service.submit(x, out=y)
            pending.result()
            total = time.perf_counter_ns() - begin
            stats = pending.stats or {}
            found.append(((total - stats["compute_ns"]) / 1000, stats["batch_requests"]))
        return [pair for pairs in session.comm.allgather(found[1:]) for pair in pairs]

    found = couple(comm, TRANSPORT, network(max_delay_us=DELAY_US), ask) or [(0.0, 0)]
    waits, requests = zip(*found, strict=True)
    return {
        "case": "census_wait",
        "clients": CLIENTS,
        "rows": ROWS,
        "max_delay_us": DELAY_US,
        "batch_requests_min": min(requests),
        "value": round(float(np.median(waits)), 1),
        "unit": "us",
    }


def throughput_rows(speeds: Speeds) -> list[dict[str, Any]]:
    """Rows per second of every system, by clients."""
    return [
        {
            "case": "throughput",
            "system": system,
            "clients": clients,
            "rows": ROWS,
            "value": round(float(np.median(speeds[system, clients]))),
            "unit": "rows/s",
        }
        for system, clients in speeds
        if system in ("mpiserve", "zeromq")
    ]


def efficiency_row(speeds: Speeds) -> dict[str, Any]:
    """Compare mpiserve with the best that the network does in process."""
    medians = {name: float(np.median(found)) for (name, n), found in speeds.items() if n == CLIENTS}
    chunks = {int(name): speed for name, speed in medians.items() if name.isdigit()}
    best = max(chunks, key=lambda chunk: chunks[chunk])
    row = {
        "case": "batch_efficiency",
        "clients": CLIENTS,
        "rows": ROWS,
        "model": "mlp",
        "transport": TRANSPORT,
        "value": round(medians["mpiserve"] / chunks[best], 4),
        "unit": "ratio",
        "rows_per_s": round(medians["mpiserve"]),
        "in_process_rows_per_s": round(chunks[best]),
        "in_process_chunk": best,
        "in_process_naive_rows_per_s": round(medians["naive"]),
    }
    if "zeromq" in medians:
        row["zeromq_rows_per_s"] = round(medians["zeromq"])
    return row
