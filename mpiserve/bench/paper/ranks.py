"""The program of the ranks of one experiment: mpiserve, and bare ZeroMQ between the same ranks.

    python -m mpiserve.bench.paper.ranks SPEC FILE

The first ranks are clients, the others serve. SPEC is a JSON object: the fields of Spec. Rank 0
writes to FILE what was measured.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, idle_barrier
from mpiserve.bench.paper.loop import Call, Loop, closed_loop, merged
from mpiserve.bench.paper.services import caller, served
from mpiserve.config.partition import INFERENCE, SIMULATION
from mpiserve.session import Session, join

STOP = b""
WAIT = 60_000  # milliseconds for an answer of ZeroMQ

Found = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """An experiment.

    Attributes:
        model: One of mpiserve.bench.paper.services.
        services: Replicas.
        clients: Ranks that ask.
        tensor_parallel: Ranks of a replica.
        path: Of the weights.
        warm: Seconds before the measurement.
        seconds: Of the measurement.
        zeromq: Whether ZeroMQ is measured too.
        hosts: 2 if clients and services have a host each.
        turns: How often mpiserve is measured, one after the other.
    """

    model: str
    services: int
    clients: int
    tensor_parallel: int = 1
    path: str = ""
    warm: float = 0.2
    seconds: float = 1.0
    zeromq: bool = True
    hosts: int = 1
    turns: int = 1

    @property
    def ranks(self) -> int:
        """The ranks of the job."""
        return self.clients + self.services * self.tensor_parallel


def main() -> None:
    """Measure."""
    spec, file = Spec(**json.loads(sys.argv[1])), Path(sys.argv[2])
    os.environ["MPISERVE_PROFILE"] = "summary"
    os.environ["MPISERVE_PROFILE_FILE"] = str(file.with_name("profile.json"))
    comm = MPI.COMM_WORLD
    found = ours(comm, spec)
    found |= {"zeromq": zeromq(comm, spec)} if spec.zeromq else {}
    if comm.rank == 0:
        file.write_text(json.dumps(found))


# ---- mpiserve


def ours(comm: MPI.Comm, spec: Spec) -> Found:
    """Serve, or ask; rank 0 gets what was measured."""
    if comm.rank >= spec.clients:
        config = served(spec.model, spec.services, spec.tensor_parallel, spec.path)
        with join(comm, INFERENCE, config) as session:
            session.serve()
        return {}
    with join(comm, SIMULATION) as session:
        return asked(session, spec)


def asked(session: Session, spec: Spec) -> Found:
    """Ask, on all clients at a time."""
    service = session.service(SERVICE)
    usable = session.comm.reduce(time.time(), MPI.MAX)
    call = caller(service, spec.model, session.comm.rank)
    closed_loop(call, spec.warm)
    turns = [one_turn(session, spec, call) for _ in range(spec.turns)]
    states = [state.entered for state in session.states(SERVICE)]
    return {"turns": turns, "states": states, "usable": usable}


def one_turn(session: Session, spec: Spec, call: Call) -> Found:
    """Ask on all clients at a time; rank 0 gets what was measured."""
    before = measured(session)
    mine = closed_loop(call, spec.seconds)
    after = measured(session)
    loops: list[Loop] | None = session.comm.gather(mine)
    return {"mpiserve": merged(loops), "profile": difference(before, after)} if loops else {}


def measured(session: Session) -> Found:
    """Read on rank 0 what all ranks have measured, while none asks."""
    idle_barrier(session.comm)
    found: Found = session.report()["services"][SERVICE] if session.comm.rank == 0 else {}
    idle_barrier(session.comm)
    return found


def difference(before: Found, after: Found) -> Found:
    """Return the requests between two reports, and the sums of their seconds: in all, by stage."""
    return {
        "requests": after["total"]["count"] - before["total"]["count"],
        "seconds": after["total"]["sum"] - before["total"]["sum"],
        "stages": {
            stage: figures["sum"] - before["stages"][stage]["sum"]
            for stage, figures in after["stages"].items()
        },
    }


# ---- ZeroMQ


def zeromq(comm: MPI.Comm, spec: Spec) -> dict[str, float]:
    """Measure REQ and REP sockets between the same ranks; rank 0 gets the figures."""
    clients = comm.Split(comm.rank < spec.clients, comm.rank)
    loops: list[Loop] | None = None
    if comm.rank < spec.clients:
        addresses = [address for address in comm.allgather("") if address]
        mine = connected(clients, spec, addresses)
        loops = clients.gather(mine)
    else:
        answer(comm, spec)
    idle_barrier(comm)
    clients.Free()
    return merged(loops) if loops else {}


@contextmanager
def opened(kind: str) -> Iterator[Any]:
    """A socket."""
    import zmq

    with zmq.Context() as context, context.socket(getattr(zmq, kind)) as made:
        made.linger = 0
        made.rcvtimeo = WAIT
        yield made


def answer(comm: MPI.Comm, spec: Spec) -> None:
    """Answer each request with the times at which it came and was worked on."""
    clock = time.monotonic_ns
    with opened("REP") as server:
        host = socket.gethostbyname(socket.gethostname()) if spec.hosts > 1 else "127.0.0.1"
        server.bind(f"tcp://{host}:*")
        comm.allgather(server.getsockopt_string(_last_endpoint()))
        while server.recv():
            begin = clock()
            server.send(struct.pack("2q", begin, clock()))
        server.send(STOP)


def _last_endpoint() -> Any:
    import zmq

    return zmq.LAST_ENDPOINT


def connected(clients: MPI.Comm, spec: Spec, addresses: list[str]) -> Loop:
    """Ask one of the services, and stop it when all clients have ended."""
    with opened("REQ") as client:
        client.connect(addresses[clients.rank % spec.services])

        def call() -> tuple[int, ...]:
            client.send(b"12345678")
            return struct.unpack("2q", client.recv())

        closed_loop(call, spec.warm)
        idle_barrier(clients)
        mine = closed_loop(call, spec.seconds)
        idle_barrier(clients)
        if clients.rank < spec.services:
            client.send(STOP)
            client.recv()
    return mine


if __name__ == "__main__":
    main()
