"""The child process of a model: loads it and answers the calls of its rank."""

from __future__ import annotations

import atexit
import faulthandler
import logging
import mmap
import os
import pickle
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, NoReturn

import mpi4py
import numpy as np

from mpiserve._lib import handover
from mpiserve.backends.arrays import finished
from mpiserve.backends.base import Backend, Native, Steps
from mpiserve.failure import check_interrupt, end_child, interrupts
from mpiserve.serving import engines
from mpiserve.serving.isolation.channel import (
    CALL,
    FAILED,
    OK,
    RUN,
    Arrays,
    Channel,
    reshaped,
    sizes,
    view,
)
from mpiserve.serving.isolation.messages import Answer, Failure, Loaded, Order, StepsState
from mpiserve.serving.loading import Loader
from mpiserve.serving.warmup import examples

IDLE = 1.0  # seconds between two looks whether the fork server is there
SHAPES = 256  # numbers of rows whose arrays are kept
# Process, file descriptor and bytes of memory of the rank; offset and bytes of what a model writes.
Segment = tuple[int, int, int, list[tuple[int, int]]]
LARGE = ("torch", "torch._dynamo", "deepspeed", "transformers", "scipy")
# DeepSpeed imports dozens of modules of its own and of transformers when it shards a model.
PARTS = ("deepspeed.", "transformers.", "mpiserve.backends.", "mpiserve.serving.")

logger = logging.getLogger("mpiserve")


class Log(logging.Handler):
    """Keeps the records of the log, which the rank writes: it has the handlers of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append((record.levelno, record.getMessage()))

    def take(self) -> tuple[tuple[int, str], ...]:
        """Return the records since the last time."""
        taken, self.records = tuple(self.records), []
        return taken


class Child:
    """Answers the calls of the rank.

    Args:
        channel: The calls.
        log: The log.
    """

    def __init__(self, channel: Channel, log: Log) -> None:
        self._channel = channel
        self._log = log
        self._process, self._server = os.getpid(), os.getppid()
        self._backend: Backend | None = None
        self._engine: engines.Called
        self._serving = ExitStack()
        self._shapes: dict[tuple[int, ...], tuple[Arrays, Arrays, np.ndarray]] = {}
        own = channel.own
        self._memories: list[tuple[Any, Any]] = [(own, own)]  # to read; to write
        self._rows: dict[int, int] = {}  # of the requests that the steps hold
        self._memory_bytes = 0
        self._several = False  # ranks run the model together
        self._going = True

    def live(self) -> None:
        """Answer calls until the last one, or until the rank is gone."""
        calls = self._channel.calls
        while self._going:
            if calls.next(IDLE):
                (self._message if calls.operation == CALL else self._batch)()
            elif os.getppid() != self._server:
                return

    # ---- batches

    def _batch(self) -> None:
        """Run the model on a batch, with the results where the rank looks for them."""
        calls, shapes = self._channel.calls, None
        try:
            if calls.size and self._loaded.service.rows == "ragged":
                self._run_ragged(calls.rows, calls.places)
            elif calls.size:
                shapes = self._run_any(calls.rows, calls.places)
            else:
                self._run(calls.rows, calls.places)
        except BaseException as error:
            check_interrupt()
            self._channel.answer(FAILED, Answer(failure=self._failure(error), log=self._log.take()))
            return
        self._check_process()
        if shapes or self._log.records:
            self._channel.answer(OK, Answer(shapes, log=self._log.take()))
        else:
            calls.end(OK)

    def _run(self, rows: int, places: tuple[int, ...]) -> None:
        key = (rows, *places)
        inputs, outputs, clients = self._shapes.get(key) or self._arrays(key)
        backend = self._loaded
        if backend.wants_clients:
            backend.clients = clients.copy()
        arrays = backend.given(inputs)
        if self._several:
            result = backend.run(arrays)
        else:
            result = self._engine.run(arrays, outputs, self._channel.calls.report)
        if result is not outputs:
            for array, given in zip(outputs, self._finished(result, rows), strict=True):
                array[...] = given

    def _run_any(self, rows: int, places: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Run the model on a batch with free dimensions; return the shapes of the results."""
        inputs, outputs, clients = self._arrays((rows, *places))
        backend, shapes = self._loaded, self._channel.asked()
        if backend.wants_clients:
            backend.clients = clients.copy()
        given = tuple(reshaped(*pair) for pair in zip(inputs, shapes, strict=True))
        results = self._finished(backend.run(backend.given(given)), rows)
        for room, result in zip(outputs, results, strict=True):
            reshaped(room, result.shape)[...] = result
        return [result.shape for result in results]

    def _run_ragged(self, rows: int, places: tuple[int, ...]) -> None:
        """Run the model on a ragged batch; the rank knows the first dimensions of the results."""
        inputs, outputs, clients = self._arrays((rows, *places))
        backend = self._loaded
        if backend.wants_clients:
            backend.clients = clients.copy()
        made = np.zeros((rows, len(outputs)), np.int64)
        given = (*backend.given(inputs), self._channel.asked())
        backend.run_batch(given, (*outputs, made), lambda _: None)

    def _arrays(self, key: tuple[int, ...]) -> tuple[Arrays, Arrays, np.ndarray]:
        """View the places of a batch; they repeat, so the views are kept."""
        service, rows = self._loaded.service, key[0]
        memories = [self._memories[number] for number in key[1::2]]
        places = list(zip(memories, key[2::2], strict=True))
        n = len(service.inputs)
        inputs = tuple(
            view(memory[0], offset, tensor, rows)
            for (memory, offset), tensor in zip(places, service.inputs, strict=False)
        )
        outputs = tuple(
            view(memory[1], offset, tensor, rows)
            for (memory, offset), tensor in zip(places[n:], service.outputs, strict=False)
        )
        for array in inputs:
            array.flags.writeable = False
        clients = np.ndarray((rows,), np.int32, places[-1][0][1], places[-1][1])
        if len(self._shapes) >= SHAPES:
            self._shapes.clear()
        self._shapes[key] = inputs, outputs, clients
        return inputs, outputs, clients

    def _finished(self, result: Any, rows: int) -> list[np.ndarray]:
        return finished(result, self._loaded.service, rows)

    @property
    def _loaded(self) -> Backend:
        assert self._backend
        return self._backend

    def _check_process(self) -> None:
        """End a process that the model has forked: only its parent answers."""
        if os.getpid() != self._process:
            end_child(None)

    def _failure(self, error: BaseException) -> Failure:
        failure = Failure.of(error)
        if isinstance(error, MemoryError) and self._memory_bytes:
            text = f"{failure.text} (memory_bytes = {self._memory_bytes})"
            return Failure(failure.code, text, failure.trace)
        return failure

    # ---- messages

    def _message(self) -> None:
        code, result, failure = OK, None, None
        try:
            name, *arguments = self._channel.asked()
            result = CALLS[name](self, *arguments)
        except BaseException as error:
            check_interrupt()
            code, failure = FAILED, self._failure(error)
        self._check_process()
        self._channel.answer(code, Answer(result, failure, self._log.take()))

    def load(self, order: Order) -> Loaded:
        """Load the model, and warm it up."""
        _settle(order)
        service, remarks = order.service, list[str]()
        self._memory_bytes = service.memory_bytes
        loader = Loader(self._met(order), order.local_rank, remarks.append)
        if order.known:
            backend = loader.repeat(service, order.known)
        else:
            backend = loader.load(service, tuning=order.tuning, in_c=order.in_c)
        self._backend = backend
        self._engine = engines.Called(backend, service)
        self._answer_in_c()
        return Loaded(
            engine=engines.engine_of(backend),
            together=bool(backend.together),
            copies=bool(backend.copies),
            wants_clients=bool(backend.wants_clients),
            tuning=backend.tune_result,
            libraries=() if order.known else _libraries(),
            remarks=tuple(remarks),
            steps=self._state() if backend.steps else None,
            takes_over=type(backend.steps).take_over is not Steps.take_over
            if backend.steps
            else False,
            native=backend.native,
            to_compile=backend.to_compile,
        )

    def _met(self, order: Order) -> Any:
        """Meet the children of the other ranks of the replica, if there are several."""
        if order.meeting is None:
            return None
        from mpiserve.backends.torch.peers import Peers

        self._several = True
        listener = next(iter(self._channel.more), None)
        return Peers(order.meeting, listener)

    def compile(self, order: Order, nice: int) -> Native | None:
        """Compile the model for another child; a child that does this does nothing else."""
        _settle(order)
        os.nice(nice)
        assert order.known
        loader = Loader(None, order.local_rank, lambda _: None)
        return loader.compile(order.service, order.known)

    def adopt(self, native: Native) -> None:
        """Run batches by an engine in C from now on, if it computes what the model does."""
        backend = self._loaded
        engines.verify(backend, native, backend.service, examples(backend.service))
        backend.native = native
        self._engine = engines.Called(backend, backend.service)
        self._answer_in_c()

    def attach(self, segments: list[Segment]) -> None:
        """Map memory of the rank; the model can write to its outputs alone.

        Not to what clients wrote, to lanes or to the memory of another service.
        """
        for pid, number, size, parts in segments:
            file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
            try:
                read, write = mmap.mmap(file, size, access=mmap.ACCESS_READ), mmap.mmap(file, size)
            finally:
                os.close(file)
            handover.write_only(write, parts)
            self._memories.append((read, write))
        self._answer_in_c()

    def _answer_in_c(self) -> None:
        """Have the model's engine in C answer batches, if it has one, without Python."""
        engine, service = self._engine.engine, self._loaded.service
        arrays = [tuple(np.frombuffer(view, np.uint8) for view in both) for both in self._memories]
        memories = [(a.ctypes.data, b.ctypes.data, a.nbytes) for a, b in arrays]
        address = engine.address if engine else 0
        self._channel.calls.serve(RUN, address, sizes(service), memories, (engine, arrays))

    def enter(self) -> None:
        """Enter what the backend needs while it serves."""
        self._serving.enter_context(self._loaded.serving())

    def leave(self) -> None:
        """Leave what the backend needed while it served."""
        self._serving.close()

    def close(self) -> None:
        """Close the model, and end after the answer."""
        self._going = False
        if self._backend:
            self._backend.close()

    # ---- continuous batching

    @property
    def _steps(self) -> Steps:
        steps = self._loaded.steps
        assert steps
        return steps

    def begin(self, key: int, client: int, inputs: Arrays) -> StepsState:
        """Begin a request."""
        self._rows[key] = len(inputs[0])
        try:
            self._steps.begin(key, client, inputs)
        except BaseException:
            self._rows.pop(key, None)
            raise
        return self._state()

    def step(self) -> tuple[StepsState, dict[int, Any]]:
        """Do one step; return the arrays, or the failures, of the requests that have ended."""
        results = {key: self._result(key, result) for key, result in self._steps.step().items()}
        return self._state(), results

    def drop(self, key: int) -> StepsState:
        """Drop a request."""
        self._rows.pop(key, None)
        self._steps.drop(key)
        return self._state()

    def copy(self) -> bytes:
        """Return a copy of the steps, for another version."""
        return pickle.dumps(self._steps)

    def take_over(self, copy: bytes) -> StepsState:
        """Take over state of another version's steps."""
        self._steps.take_over(pickle.loads(copy))
        return self._state()

    def _result(self, key: int, result: Any) -> Any:
        rows = self._rows.pop(key, None)
        if rows is None:
            return None
        if isinstance(result, BaseException):
            return self._failure(result)
        try:
            return self._finished(result, rows)
        except BaseException as error:
            check_interrupt()
            return self._failure(error)

    def _state(self) -> StepsState:
        def asked(what: str) -> bool | Failure:
            try:
                return bool(getattr(self._steps, what))
            except BaseException as error:
                check_interrupt()
                return self._failure(error)

        return StepsState(asked("busy"), asked("room"))


CALLS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (Child.load, Child.attach, Child.enter, Child.leave, Child.close)
    + (Child.compile, Child.adopt)
    + (Child.begin, Child.step, Child.drop, Child.copy, Child.take_over)
}


def main(name: str, files: list[int]) -> NoReturn:
    """Live as the child of a fork server.

    Args:
        name: The name of the service.
        files: The descriptors of the channel.
    """
    atexit._clear()
    # MPI would not be the rank's: a model that calls it fails, as it needs isolate = false.
    mpi4py.rc.initialize = False
    with suppress(Exception):
        faulthandler.enable()  # a crash is located in the log
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    log = Log()
    logger.addHandler(log)
    logger.propagate = False
    process = os.getpid()
    try:
        with interrupts():
            Child(Channel(files), log).live()
        atexit._run_exitfuncs()
    except BaseException as error:
        if os.getpid() == process:
            print(f"mpiserve: the process of service {name} ends", file=sys.stderr)
        end_child(error)
    end_child(None)


def _libraries() -> tuple[str, ...]:
    """Name the large libraries that were imported, and our own, for later children to share."""
    parts = [name for name in sys.modules if name.startswith(PARTS)]
    return tuple(name for name in (*LARGE, *parts) if name in sys.modules)


def _settle(order: Order) -> None:
    """Take over what the rank has set since the fork server started."""
    sys.path[:] = order.path
    _set_environment(order.environment)
    os.sched_setaffinity(0, order.cores)
    logger.setLevel(order.level)
    if order.service.memory_bytes:
        _limit_memory(order.service.memory_bytes)


def _set_environment(wanted: Mapping[str, str]) -> None:
    """Make the environment this one; what is the same already stays in pages that are shared."""
    now = dict(os.environ)
    for name in now.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update({name: text for name, text in wanted.items() if now.get(name) != text})


def _limit_memory(size: int) -> None:
    """Limit what is allocated from now on: not what is shared with the rank and other children."""
    with open("/proc/self/status") as file:
        used = next(int(line.split()[1]) for line in file if line.startswith("VmData:"))
    limit = used * 1024 + size
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
