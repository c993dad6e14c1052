"""The rank's side of the fork server: start it, and have it fork and end children."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from mpiserve.errors import Code, ModelError
from mpiserve.serving.isolation.fork_server import END, FOR_RANKS, FORK, IMPORT, LATER, readable

# Launchers identify a rank by these: a child that finds them would take itself for one.
MPI_VARIABLES = re.compile(
    "(OMPI|OPAL|ORTE|PMIX|PRTE|PMI|PMI2|HYDRA|HYDI|MPI_LOCAL|MPIEXEC|MPIR|MPICH|MV2|PALS|ALPS|JSM)_"
    "|MPI_LOCAL|MPI_HOST|HYDRA"
)
CHILD = "mpiserve.serving.isolation.child"  # imports what each child needs
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DEVICES = ("nvidia[0-9]*", "kfd")  # of GPUs, in /dev
NAMES = 100  # of modules in a request, which has a limit
ANSWER = 600.0  # seconds in which the fork server answers; it may import from a slow file system
STATUS = 4.0  # seconds to wait for the end of a child, and for its status
LOOK = 2.0  # seconds of waiting after which it may be that somebody has stopped it
TRIES = 2
NO_PROCESS = "no process for the model can be made"


class Process(NamedTuple):
    """A child: its process, and a descriptor that tells when it has ended."""

    pid: int
    pidfd: int


class ForkServer:
    """Starts the fork server when it is needed first, and again if it was killed.

    Threads may use it at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0  # replies that have not come yet
        self._libraries: dict[str, None] = {}
        self._threads = 1

    def start(self) -> None:
        """Start it, unless it runs; returns at once. Where that fails, `fork` tries again."""
        with self._lock, suppress(OSError):
            if self._link is None:
                self._start()

    def load(self, libraries: Iterable[str], threads: int = 1, *, later: bool = False) -> None:
        """Import libraries, which children then share; returns at once.

        Args:
            libraries: Their names. Of DeepSpeed nothing is imported where there is a GPU: it
                chooses its accelerator then, and a fork cannot use a GPU that its parent has used.
            threads: The threads that they may start. They read it when they are imported, so the
                first number stays.
            later: Whether to import them while there is nothing else to do.
        """
        if any(next(Path("/dev").glob(name), None) for name in DEVICES):
            libraries = [name for name in libraries if name.partition(".")[0] != "deepspeed"]
        with self._lock:
            self._threads = self._threads if self._libraries else threads
            new = [name for name in (CHILD, *libraries) if name not in self._libraries]
            self._libraries.update(dict.fromkeys(new))
            if new and self._link is not None:
                try:
                    self._import(new, later=later)
                except OSError:  # it was killed
                    self._stop()

    def fork(self, name: str, files: Sequence[int]) -> Process:
        """Make a child.

        Args:
            name: The name of the service.
            files: Descriptors for the child, which gets copies.

        Raises:
            ModelError: If there is no way to make one.
        """
        with self._lock:
            for left in reversed(range(TRIES)):
                try:
                    return self._fork(name, files)
                except OSError as error:
                    self._stop()
                    if not left:
                        raise ModelError(Code.EMODEL, f"{NO_PROCESS}: {error}") from None
        raise AssertionError

    def end(self, process: Process) -> int | None:
        """Kill a child and all that it has started, and wait for its end.

        Returns:
            The status of its end, as of os.waitpid; None if it is unknown, also if the fork server
            does not say it soon, since it is importing: it ends the rest then.
        """
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        readable(process.pidfd, STATUS)
        os.close(process.pidfd)
        with self._lock:
            if self._link is None:
                return None
            try:
                self._send((END, process.pid))
                return pickle.loads(self._reply(STATUS)[0])
            except TimeoutError:
                return None
            except (OSError, EOFError):
                self._stop()
                return None

    def close(self) -> None:
        """End it, and all its children."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.settimeout(ANSWER)  # of what is sent
        program = f"import sys; sys.path[:] = {sys.path!r}; " + (
            f"from mpiserve.serving.isolation.fork_server import main; main({other.fileno()})"
        )
        with other, _blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=without_mpi(os.environ),
            )
        self._link, self._due = mine, 0
        if self._libraries:
            self._import(list(self._libraries))

    def _import(self, names: list[str], *, later: bool = False) -> None:
        variables = dict.fromkeys(THREADS, str(self._threads))
        for begin in range(0, len(names), NAMES):
            part = names[begin : begin + NAMES]
            self._send((LATER, part) if later else (IMPORT, (part, variables)))

    def _fork(self, name: str, files: Sequence[int]) -> Process:
        if self._link is None:
            self._start()
        self._send((FORK, name), files)
        assert self._link
        data, pidfds = self._reply(ANSWER)
        if not pidfds:
            raise ModelError(Code.EMODEL, f"{NO_PROCESS}: {pickle.loads(data)}")
        return Process(pickle.loads(data), pidfds[0])

    def _reply(self, seconds: float) -> tuple[bytes, list[int]]:
        """Receive the reply to the last request; drop those that came too late before."""
        assert self._link
        self._due += 1
        end = time.monotonic() + seconds
        while True:
            data, files = self._received(end)
            if not data:
                raise ConnectionResetError("the fork server has ended")
            self._due -= 1
            if not self._due:
                return data, files

    def _received(self, end: float) -> tuple[bytes, list[int]]:
        """Receive a message; wake a fork server that a model, or a person, has stopped."""
        assert self._link and self._process
        while not readable(self._link, min(LOOK, max(0.0, end - time.monotonic()))):
            self._process.send_signal(signal.SIGCONT)
            if time.monotonic() >= end:
                raise TimeoutError("the fork server does not answer")
        data, files, _, _ = socket.recv_fds(self._link, 1 << 16, 1)
        return data, files

    def _send(self, request: tuple[str, Any], files: Sequence[int] = ()) -> None:
        assert self._link
        socket.send_fds(self._link, [pickle.dumps(request)], files)

    def _stop(self) -> None:
        """End it: it ends its children when the socket closes."""
        if self._link is None or self._process is None:
            return
        self._link.close()
        self._link = None
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _blocked() -> Iterator[None]:
    """Block the signals that are for the rank in a process that is started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_RANKS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def without_mpi(environment: Any) -> dict[str, str]:
    """Return an environment without what makes a process the rank of a job."""
    return {name: value for name, value in environment.items() if not MPI_VARIABLES.match(name)}


def ending(status: int | None, what: str) -> str:
    """Describe how a process has ended, behind its name, and what it did then."""
    if status is None:
        return f"has ended {what}"
    if not os.WIFSIGNALED(status):
        return f"has ended with status {os.waitstatus_to_exitcode(status)} {what}"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return f"was killed by {name} {what}: the machine may lack memory"
    return f"was killed by {name} ({signal.strsignal(number)}) {what}"


the_server = ForkServer()  # of this process: starting one takes a while, so sessions share it
