"""The local model of a service: a process beside a simulation rank, which answers for the service.

The library of the rank starts it as a program, in any language (csrc/client/local.c), and hands
requests over. It runs no code of the user's: as in an inference rank, a child process does.
"""

from __future__ import annotations

import base64
import logging
import mmap
import os
import pickle
import select
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import mpi4py
import numpy as np

from mpiserve._lib.handover import SIZE, Handover
from mpiserve.backends.arrays import checked, dtype_of
from mpiserve.backends.base import Steps, ordered
from mpiserve.errors import Code, ConfigError, Error
from mpiserve.failure import check_interrupt, describe, one_line
from mpiserve.observe.log import start_logging
from mpiserve.serving.isolation.channel import Arrays, view
from mpiserve.serving.isolation.fork_server import ignore_signals

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.config import ServiceConfig
    from mpiserve.serving.isolation.isolated import Isolated

MODULE = "mpiserve.serving.isolation.local_model"
LIMIT = 2047  # bytes of a command: MPISERVE_LOCAL_SIZE, without its final zero
CALLS, TENSORS, LIFELINE = 3, 4, 5  # numbers of files, as the library gives them
TEXT = 1024  # bytes of the text of an error, behind the calls
OK, FAILED = 0, 1  # codes of the ends of calls
IDLE = 1.0  # seconds of a wait for a call, until Python handles signals
MARGIN = 60.0  # seconds beside those of the configuration: to import, to end a child
KEY = 0  # of the only request that a model in steps has

logger = logging.getLogger("mpiserve")

Batch = tuple[Arrays, Arrays]


# ---- what the inference rank publishes


def published(service: ServiceConfig) -> dict[str, Any]:
    """Return what clients need to start local models of a service, if it has any.

    Raises:
        ConfigError: If the table of the service is too long to be published.
    """
    if service.fallback is None:
        return {}
    # Either may end a child, and another one is started for the request.
    limit = 2 * (service.load_timeout_s + _limited(service).timeout_s) + MARGIN
    return {"local": _command(service), "local_timeout": limit}


def _command(service: ServiceConfig) -> str:
    """Return the words of the command that starts a local model, a newline after each."""
    table = base64.b85encode(zlib.compress(pickle.dumps(service), 9)).decode()
    text = "".join(f"{word}\n" for word in (sys.executable, "-m", MODULE, table))
    if len(text.encode()) > LIMIT:
        what = f"makes a command of {len(text)} bytes, and at most {LIMIT} can be published"
        key = f"service.{service.name}.fallback"
        raise ConfigError(Code.ECONFIG, f"{key}: the table of the service {what}: shorten options")
    return text


def _limited(service: ServiceConfig) -> ServiceConfig:
    """Return a table in which each batch has a limit: the simulation waits for a local model."""
    return service.model_copy(update={"timeout_s": service.timeout_s or service.load_timeout_s})


# ---- the process


class Memory:
    """The tensors of the requests, which the child of the model maps, too.

    Args:
        file: The descriptor.
    """

    def __init__(self, file: int) -> None:
        self._file, self._size = file, os.fstat(file).st_size
        self.map = mmap.mmap(file, self._size)
        self._begin = np.frombuffer(self.map, np.uint8).ctypes.data

    def segments(self) -> list[tuple[int, int, int]]:
        """Return the descriptor, the address and the bytes of each segment, as core.Session."""
        return [(self._file, self._begin, self._size)]

    def writable(self, service: str) -> list[list[tuple[int, int]]]:
        """Return the parts of each segment that the model writes: here all, the rank's own."""
        return [[(0, self._size)]]

    def wanted(self) -> bool:
        """Return True: this process ends with its rank."""
        return True

    def locate(self, array: np.ndarray) -> tuple[int, int] | None:
        """Return in which segment an array lies, and where; None if in none."""
        at = array.ctypes.data - self._begin
        return (0, at) if 0 <= at < self._size else None


class LocalModel:
    """Answers the requests of a rank.

    Args:
        service: The table of the service.
        rank: The rank, in the world.
        index: Its number among the simulation ranks, to choose a device by.
    """

    def __init__(self, service: ServiceConfig, rank: int, index: int) -> None:
        self._service, self._rank, self._index = service, rank, index
        self._memory = Memory(TENSORS)
        both = mmap.mmap(CALLS, SIZE + TEXT)
        self._calls = Handover(memoryview(both)[:SIZE])
        self._text = memoryview(both)[SIZE:]
        self._batches: dict[int, Batch] = {}  # by rows: they repeat
        self._backend: Isolated | None = None
        self._wrong = ""  # why the model cannot be loaded

    def live(self) -> None:
        """Answer requests for ever: a thread ends the process when the rank does."""
        while True:
            if self._calls.next(IDLE):
                self._answer(self._calls.rows, self._calls.places)

    def _answer(self, rows: int, places: tuple[int, ...]) -> None:
        try:
            backend = self._loaded()
            self._run(backend, *self._arrays(rows, places[1::2]))
        except BaseException as error:
            check_interrupt()
            data = one_line(describe(error), TEXT - 1).encode()[: TEXT - 1] + b"\0"
            self._text[: len(data)] = data
            self._calls.end(FAILED)
        else:
            self._calls.end(OK)

    def _loaded(self) -> Isolated:
        """Load the model at the first request. What fails then fails for good: it takes long."""
        if self._wrong:
            raise Error(Code.EMODEL, self._wrong)
        if self._backend is None:
            try:
                self._backend = self._load()
            except BaseException as error:
                check_interrupt()
                self._wrong = f"it cannot be loaded: {describe(error)}"
                logger.error("service %s: its local model %s", self._service.name, self._wrong[3:])
                raise Error(Code.EMODEL, self._wrong) from error
        return self._backend

    def _load(self) -> Isolated:
        from mpiserve.serving.isolation.loader import IsolatedLoader

        begin, name = time.monotonic(), self._service.name
        lib = cast("core.Session", self._memory)
        loader = IsolatedLoader(lib, self._service, self._index, self._note)
        backend = cast("Isolated", loader.load(self._service))
        backend.serving().__enter__()
        logger.warning(
            "service %s: its local model answers after %.1f s", name, time.monotonic() - begin
        )
        return backend

    def _note(self, remark: str) -> None:
        """Drop a remark about the model: the inference rank has logged it."""

    def _arrays(self, rows: int, offsets: Sequence[int]) -> Batch:
        if rows not in self._batches:
            tensors = (*self._service.inputs, *self._service.outputs)
            every = tuple(
                view(self._memory.map, offset, tensor, rows)
                for offset, tensor in zip(offsets, tensors, strict=True)
            )
            n = len(self._service.inputs)
            self._batches = {rows: (every[:n], every[n:])}
        return self._batches[rows]

    def _run(self, backend: Isolated, inputs: Arrays, outputs: Arrays) -> None:
        """Run the model on a request, with the results where the rank looks for them."""
        rows = len(inputs[0])
        if backend.steps:
            result = self._stepped(backend.steps, inputs)
        else:
            if backend.wants_clients:
                backend.clients = np.full(rows, self._rank, np.int32)
            result = backend.run_batch(backend.given(inputs), outputs, _ignore)
        if result is outputs:
            return
        results = zip(ordered(result, self._service), self._service.outputs, outputs, strict=True)
        for array, tensor, output in results:
            output[...] = checked(array, tensor, dtype_of(tensor), rows)

    def _stepped(self, steps: Steps, inputs: Arrays) -> Any:
        """Have a model that works in steps answer a request, alone."""
        steps.begin(KEY, self._rank, inputs)
        try:
            result = self._stepped_to_end(steps)
        except BaseException:
            steps.drop(KEY)
            raise
        if isinstance(result, BaseException):
            raise result
        return result

    def _stepped_to_end(self, steps: Steps) -> Any:
        limit = self._service.timeout_s
        end = time.monotonic() + limit
        while KEY not in (results := steps.step()):
            if time.monotonic() > end:
                raise Error(Code.EMODEL, f"the model's steps took over {limit:g} s")
        return results[KEY]


def _ignore(_rows: int) -> None:
    """Ignore rows that are done early: the rank waits for all."""


def _end_with(parent: int) -> None:
    """End when the rank does, or when it closes the pipe; end the model's processes first."""
    from mpiserve.serving.isolation.server_link import the_server

    ends = [LIFELINE]
    if os.getppid() == parent:
        ends.append(os.pidfd_open(parent))  # a program that the rank has forked may keep the pipe
        select.select(ends, [], [])
    the_server.close()
    os._exit(0)


def _close_others() -> None:
    """Close files of the rank's that it has inherited, such as those of MPI."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > LIFELINE:
            with suppress(OSError):
                os.close(int(name))
    for file in (CALLS, TENSORS, LIFELINE):
        os.set_inheritable(file, False)


def main(table: str, parent: str, rank: str, index: str, why: str) -> None:
    """Live as the local model of a service.

    Args:
        table: The table of the service, as it was published.
        parent: The process of the rank.
        rank: The rank, in the world.
        index: Its number among the simulation ranks.
        why: Why it was started, for the log.
    """
    from mpiserve.serving.isolation.server_link import without_mpi

    ignore_signals()
    _close_others()
    for name in os.environ.keys() - without_mpi(os.environ).keys():
        del os.environ[name]
    mpi4py.rc.initialize = False  # it would not be the rank's
    threading.Thread(target=_end_with, args=[int(parent)], daemon=True).start()
    start_logging(int(rank))
    service = _limited(pickle.loads(zlib.decompress(base64.b85decode(table))))
    text = "service %s: a local model is started, since no replica answers: %s"
    logger.warning(text, service.name, one_line(why))
    LocalModel(service, int(rank), int(index)).live()


if __name__ == "__main__":
    main(*sys.argv[1:])
