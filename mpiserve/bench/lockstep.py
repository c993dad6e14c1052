"""Three clients in lock-step and one server: how well batches use the model's core.

The network in a process without MPI, mpiserve, and a ZeroMQ worker take short turns, so that
other load on the machine affects all alike. A second run gives the rank that serves a core.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.baseline import WARM
from mpiserve.bench.child import Child
from mpiserve.bench.coupled import SERVICE, couple, idle_barrier, network
from mpiserve.bench.machine import version
from mpiserve.bench.models import features
from mpiserve.bench.places import anywhere
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.bench.worker import STOP
from mpiserve.session import Session

if TYPE_CHECKING:
    import zmq

CLIENTS = 3
ROWS = 1024  # of each client
DELAY_US = 20000
STEPS, ROUNDS = 60, 8
CHUNKS = (128, 256, 384, 512, 768, 1024, 1536, 3072)
CALIBRATIONS = 3
TRANSPORT = "shared"

Step = Callable[[], object]
Speeds = dict[tuple[str, int], list[float]]  # rows per second of each turn, by system and clients


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Measure throughput and census. Collective over 4 ranks; rank 0 gets the rows."""
    progress.begin("lock-step", CLIENTS + 3)
    found = turns(comm, plan, progress, range(1, CLIENTS + 1))
    chunk = found[1] if found else 0
    bound = turns(comm, plan, progress, (CLIENTS,), chunk, bound=True)
    progress.step("census")
    census = census_wait(comm, plan)
    if comm.rank > 0 or found is None or bound is None:
        return []
    efficiency = [efficiency_row(*found, bind=False), efficiency_row(*bound, bind=True)]
    return [*throughput_rows(found[0]), *efficiency, census]


def turns(
    comm: MPI.Comm,
    plan: Plan,
    progress: Progress,
    clients: Sequence[int],
    chunk: int = 0,
    bound: bool = False,
) -> tuple[Speeds, int] | None:
    """Compare the systems for some numbers of clients; return speeds, and the best chunk."""
    return couple(
        comm,
        TRANSPORT,
        network(),
        lambda session: Turns(session, plan).run(progress, clients, chunk),
        bound=bound,
    )


class Turns:
    """The clients of mpiserve, in turns with the systems that it is compared with."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self.session, self.comm = session, session.comm
        self.steps, self.rounds = (3, 2) if plan.quick else (STEPS, ROUNDS)
        self.speeds: Speeds = defaultdict(list)

    def run(self, progress: Progress, clients: Sequence[int], chunk: int) -> tuple[Speeds, int]:
        """Measure everything; return the speeds and the best chunk of the baseline.

        Args:
            progress: Shows every step.
            clients: The numbers of clients to measure.
            chunk: The best chunk, if known.
        """
        with ExitStack() as stack:
            child = None
            if self.comm.rank == 0:
                with anywhere():
                    child = stack.enter_context(Child("baseline", str(CLIENTS * ROWS)))
            zeromq = stack.enter_context(self.zeromq())
            if not chunk:
                progress.step("in process, while the other ranks sleep")
                chunk = self.best_chunk(child)
            for active in clients:
                progress.step(f"{active} clients")
                ours = self.client() if self.comm.rank < active else None
                for _ in range(self.rounds):
                    if active == CLIENTS:
                        self.alone("in_process", child, chunk)
                    self.turn("mpiserve", active, ours)
                    if zeromq:
                        with anywhere():
                            self.turn("zeromq", active, zeromq)
        return self.speeds, chunk

    def best_chunk(self, child: Child | None) -> int:
        """Find the chunk size with which the network is fastest in process."""
        for chunk in (0, *CALIBRATIONS * CHUNKS):
            self.alone(str(chunk), child, chunk)
        return max(CHUNKS, key=lambda chunk: median(self.speeds[str(chunk), 0]))

    def alone(self, name: str, child: Child | None, chunk: int) -> None:
        """Measure the child while every rank sleeps."""
        speed = float(child.request(f"{chunk} {self.steps}")) if child else None
        idle_barrier(self.comm)
        self.speeds[name, 0].append(self.comm.bcast(speed))

    def turn(self, name: str, active: int, step: Step | None) -> None:
        """Measure steps of the first ranks, from the earliest begin to the latest end."""
        idle_barrier(self.comm)
        mine = self.times(step) if self.comm.rank < active and step else None
        idle_barrier(self.comm)
        spans = [span for span in self.comm.allgather(mine) if span]
        span = max(end for _, end in spans) - min(begin for begin, _ in spans)
        self.speeds[name, active].append(active * ROWS * self.steps / span)

    def times(self, step: Step) -> tuple[float, float]:
        """Warm up in step with the other ranks, then return begin and end of the steps."""
        for _ in range(WARM):
            step()
        begin = time.monotonic()
        for _ in range(self.steps):
            step()
        return begin, time.monotonic()

    def client(self) -> Step:
        """Query mpiserve. Batches do not wait for ranks that never look up the service."""
        service = self.session.service(SERVICE)
        x, y = features(ROWS), features(ROWS)
        return lambda: service(x, out=y)

    @contextmanager
    def zeromq(self) -> Iterator[Step | None]:
        """Query a ZeroMQ worker, if pyzmq is installed."""
        if not self.comm.bcast(version("pyzmq")):
            yield None
            return
        with ExitStack() as stack:
            with anywhere():  # the worker, and ZeroMQ's threads
                socket = self.connect(stack)
            x = features(ROWS)

            def step() -> None:
                socket.send(x.data, copy=False)
                np.frombuffer(socket.recv(copy=False).buffer, np.float32).reshape(x.shape)

            yield step
            idle_barrier(self.comm)
            if self.comm.rank == 0:
                socket.send(STOP)
                socket.recv()

    def connect(self, stack: ExitStack) -> zmq.Socket[bytes]:
        """Start the worker on rank 0, and connect every rank to it."""
        import zmq

        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mpiserve-"))
        address = self.comm.bcast(f"ipc://{folder}/zeromq")
        if self.comm.rank == 0:
            stack.enter_context(Child("worker", address, str(ROWS))).read_line()
        idle_barrier(self.comm)
        socket = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.REQ))
        socket.connect(address)
        return socket


def census_wait(comm: MPI.Comm, plan: Plan) -> dict[str, Any]:
    """Measure how long clients wait in addition to the model, where a timer would be slow."""

    def ask(session: Session) -> list[list[tuple[float, float, int]]]:
        service = session.service(SERVICE)
        x, y = features(ROWS), features(ROWS)
        found = []
        idle_barrier(session.comm)
        for _ in range(5 if plan.quick else 100):
            begin = time.perf_counter_ns()
            pending = service.submit(x, out=y)
            pending.result()
            total = time.perf_counter_ns() - begin
            stats = pending.stats or {}
            found.append((total, stats["compute_ns"], stats["batch_requests"]))
        return session.comm.allgather(found[len(found) // 2 :])

    found = couple(comm, TRANSPORT, network(max_delay_us=DELAY_US), ask) or [[(0.0, 0.0, 0)]]
    steps = np.array(found)  # [client, step, (total, compute, requests)]
    # Clients receive their rows as soon as they are done; the last one has the model's whole time.
    waits = (steps[:, :, 0].max(axis=0) - steps[:, :, 1].max(axis=0)) / 1000
    return {
        "case": "census_wait",
        "clients": CLIENTS,
        "rows": ROWS,
        "max_delay_us": DELAY_US,
        "batch_requests_min": int(steps[:, :, 2].min()),
        "value": round(median(waits), 1),
        "unit": "us",
    }


def median(values: Any) -> float:
    """Return the median as a plain number."""
    return float(np.median(values))


def throughput_rows(speeds: Speeds) -> list[dict[str, Any]]:
    """Make rows of the report: rows per second of every system, by clients."""
    return [
        {
            "case": "throughput",
            "system": system,
            "clients": clients,
            "rows": ROWS,
            "value": round(median(found)),
            "unit": "rows/s",
        }
        for (system, clients), found in speeds.items()
        if clients
    ]


def efficiency_row(speeds: Speeds, chunk: int, bind: bool) -> dict[str, Any]:
    """Compare mpiserve with the best chunk of the network in process, turn by turn."""
    ours = np.array(speeds["mpiserve", CLIENTS])
    alone = np.array(speeds["in_process", 0])
    row = {
        "case": "batch_efficiency",
        "clients": CLIENTS,
        "rows": ROWS,
        "model": "mlp",
        "transport": TRANSPORT,
        "bind": bind,
        "value": round(median(ours / alone), 4),
        "unit": "ratio",
        "rows_per_s": round(median(ours)),
        "in_process_rows_per_s": round(median(alone)),
        "in_process_chunk": chunk,
    }
    if ("0", 0) in speeds:
        row["in_process_naive_rows_per_s"] = round(median(speeds["0", 0]))
    if ("zeromq", CLIENTS) in speeds:
        row["zeromq_rows_per_s"] = round(median(speeds["zeromq", CLIENTS]))
    return row
