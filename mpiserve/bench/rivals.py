"""Alternatives to mpiserve, each as a sampler over two ranks, from Python."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.machine import version
from mpiserve.bench.report import Progress
from mpiserve.bench.stats import timed

WAIT = 60  # seconds for an answer of a server


class Rival:
    """A way to send bytes to another rank and to receive as many.

    Attributes:
        name: The case, as in the rows.
        part: The share of mpiserve's rounds, since it takes longer.
    """

    name = ""
    part = 1.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sample(self, comm: MPI.Comm, size: int, warm: int, rounds: int) -> np.ndarray | None:
        """Measure round trips. Collective over 2 ranks; rank 0 gets the samples."""
        comm.Barrier()
        if comm.rank == 0:
            return self.ask(comm, np.ones(size, np.uint8), warm, rounds)
        self.answer(comm, size, warm + rounds)
        return None

    def ask(self, comm: MPI.Comm, x: np.ndarray, warm: int, rounds: int) -> np.ndarray:
        """Send x and wait for an answer, repeatedly."""
        raise NotImplementedError

    def answer(self, comm: MPI.Comm, size: int, rounds: int) -> None:
        """Return each message."""
        raise NotImplementedError


class Mpi4py(Rival):
    """Send and Recv of preallocated arrays."""

    name = "send_recv_mpi4py"

    def ask(self, comm: MPI.Comm, x: np.ndarray, warm: int, rounds: int) -> np.ndarray:
        """Send and receive."""
        y = np.zeros_like(x)

        def call() -> None:
            comm.Send(x, 1)
            comm.Recv(y, 1)

        return timed(call, warm, rounds)

    def answer(self, comm: MPI.Comm, size: int, rounds: int) -> None:
        """Receive and send."""
        y = np.zeros(size, np.uint8)
        for _ in range(rounds):
            comm.Recv(y, 0)
            comm.Send(y, 0)


class ZeroMQ(Rival):
    """REQ and REP over a Unix socket, without copies where ZeroMQ can."""

    name = "zeromq"
    part = 0.1

    @contextmanager
    def _socket(self, kind: str) -> Iterator[Any]:
        import zmq

        with zmq.Context() as context, context.socket(getattr(zmq, kind)) as socket:
            socket.linger = 0
            socket.rcvtimeo = WAIT * 1000
            yield socket

    def ask(self, comm: MPI.Comm, x: np.ndarray, warm: int, rounds: int) -> np.ndarray:
        """Send requests; the answer is an array that views the message."""
        with self._socket("REQ") as socket:
            comm.Barrier()
            socket.connect(f"ipc://{self.folder}/zeromq")

            def call() -> np.ndarray:
                socket.send(x.data, copy=False)
                return np.frombuffer(socket.recv(copy=False).buffer, np.uint8)

            samples = timed(call, warm, rounds)
        comm.Barrier()
        return samples

    def answer(self, comm: MPI.Comm, size: int, rounds: int) -> None:
        """Answer requests with an array, as from a model."""
        with self._socket("REP") as socket:
            socket.bind(f"ipc://{self.folder}/zeromq")
            comm.Barrier()
            for _ in range(rounds):
                x = np.frombuffer(socket.recv(copy=False).buffer, np.uint8)
                socket.send(x.data, copy=False)
            comm.Barrier()


class Redis(Rival):
    """A list that a worker pops from, and one for its answers, over a Unix socket."""

    name = "redis"
    part = 0.05

    def __init__(self, folder: Path) -> None:
        import redis

        super().__init__(folder)
        self.client: Any = redis.Redis(unix_socket_path=str(folder / "redis"), socket_timeout=WAIT)

    def ask(self, comm: MPI.Comm, x: np.ndarray, warm: int, rounds: int) -> np.ndarray:
        """Push a request and wait for the answer."""
        view = x.data

        def call() -> np.ndarray:
            self.client.rpush("asked", view)
            return np.frombuffer(self.client.blpop("answered")[1], np.uint8)

        return timed(call, warm, rounds)

    def answer(self, comm: MPI.Comm, size: int, rounds: int) -> None:
        """Pop requests and push answers."""
        for _ in range(rounds):
            x = np.frombuffer(self.client.blpop("asked")[1], np.uint8)
            self.client.rpush("answered", x.data)


@contextmanager
def available(comm: MPI.Comm, progress: Progress) -> Iterator[list[Rival]]:
    """Start servers, and yield the available alternatives. Collective over 2 ranks."""
    with ExitStack() as stack:
        folder = Path(comm.bcast(_folder(stack) if comm.rank == 0 else None))
        rivals: list[Rival] = [Mpi4py(folder)]
        for kind, missing in ((ZeroMQ, _no_zeromq), (Redis, _no_redis)):
            reason = comm.bcast(missing() if comm.rank == 0 else None)
            if reason:
                progress.say(f"{kind.name} is left out: {reason}")
                continue
            if kind is Redis and comm.rank == 0:
                stack.enter_context(redis_server(folder))
            comm.Barrier()
            rivals.append(kind(folder))
        yield rivals
        comm.Barrier()


def _folder(stack: ExitStack) -> str:
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="mpiserve-"))


def _no_zeromq() -> str:
    return "" if version("pyzmq") else "the package pyzmq is not installed"


def _no_redis() -> str:
    if not version("redis"):
        return "the package redis is not installed"
    return "" if shutil.which("redis-server") else "there is no redis-server on the path"


@contextmanager
def redis_server(folder: Path) -> Iterator[None]:
    """Run a Redis server for this job alone, which writes no files."""
    import redis

    options = ["--port", "0", "--unixsocket", str(folder / "redis"), "--dir", str(folder)]
    command = ["redis-server", *options, "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(folder / "redis"))
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()
