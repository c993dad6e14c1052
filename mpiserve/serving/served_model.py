"""One inference rank at work: take a batch, run the model, reply."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.arrays import checked, dtype_of, zeros
from mpiserve.backends.base import Backend, ordered
from mpiserve.config import NAME_SIZE, ServiceConfig, TensorConfig
from mpiserve.config.partition import Assignment
from mpiserve.config.tensor import Tensor
from mpiserve.errors import ChangeError, ClosedError, Code, Error, ModelError
from mpiserve.failure import check_interrupt, describe, one_line
from mpiserve.observe import notices
from mpiserve.observe.log import Failures
from mpiserve.serving.continuous import Stepper
from mpiserve.serving.loading import Loader, engine_of
from mpiserve.serving.reload import Changes, Order, Resting, Unloaded, Versions
from mpiserve.serving.splitting import Splitter

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve._lib import core
    from mpiserve.serving import tensor_parallel

logger = logging.getLogger("mpiserve")

IDLE = 0.1  # seconds that a step waits for a batch
READ_ONLY = ' (a model that writes to its input needs input_memory = "copy")'


class Server:
    """Serves one replica of one service.

    Attributes:
        backend: What runs the model.
        place: Which of the services of this rank it is: 0, 1, ...
        failed: Whether the model could not be loaded. The rank then stays, so that
            the world can close, and every call of a client is an error.
    """

    def __init__(
        self,
        lib: core.Session,
        assignment: Assignment,
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
        place: int = 0,
    ) -> None:
        self.lib = lib
        self.assignment = assignment
        self.place = place
        self.service = assignment.service.of_version()
        self.backend = Backend(self.service)
        self.failed = False
        self.resting = False  # the model was given up, for another one of an adaptive pool
        self._comm = comm
        self._loader = Loader(comm, local_rank, self._note)
        self._dtypes = [dtype_of(tensor) for tensor in self.service.outputs]
        self._remarks: set[str] = set()
        self._rows = ""  # what clients were told of them
        self._announced = False
        self._head: tensor_parallel.Head | None = None
        self._follower: tensor_parallel.Follower | None = None
        self._stepper: Stepper | None = None
        self._engine = ""  # of the model that answers, once it is loaded
        self._native = False  # ..., which the broker answers for
        self._failures = Failures(self._name)
        self._splitter = Splitter(lib, self._run_rows, self._report)
        self._silence = notices.Silence(lib)
        self._alone: notices.Alone | None = notices.Alone(
            self.service.name, self.service.max_batch_rows
        )
        self._serving = ExitStack()  # what the backend needs while it serves
        self._versions = Versions(assignment.service, self._again, self._put, self.let_go)
        aside = self._shared is None and self.service.reload == "beside"
        self._changes = Changes(lib, self._versions, self._tell, aside, lambda: self.idle)

    def serve(self, watch: Callable[[], None] | None = None) -> None:
        """Load, announce, and answer until every simulation rank has left.

        Args:
            watch: Called after every step, at least a few times a second.
        """
        self.start()
        if self._follower:
            self._follower.serve(watch)
            self.let_go(self.backend)
            return
        self.enter()
        while self.step():
            if watch:
                watch()
        logger.info("%s", self.summary())
        if self._head:
            self._head.stop()
        self.close()

    def start(self) -> None:
        """Load the model, warm it up and announce the service: ready, or why not."""
        description = self.prepare()
        with notices.publishing():
            self.lib.publish(description)

    def prepare(self) -> dict[str, Any]:
        """Load the model and warm it up; give what is to be published of it."""
        begin, wrong = time.monotonic(), ""
        try:
            with notices.loading(self._name()):
                self.backend = self._loader.load(self.service)
            self._engine, self._native = engine_of(self.backend), self.backend.native
            overwrites = bool(self.backend.overwrites)
        except BaseException as error:
            check_interrupt()
            self._failures.log("cannot be served", error)
            wrong = describe(error)
        if wrong:
            self.failed = True
            return self._description(error_code=Code.EMODEL, error_text=wrong)
        if self._shared:
            self._join()
        else:
            self._stepper = self._stepper_of(self.backend)
        seconds = time.monotonic() - begin
        logger.info("%s is ready after %.1f s, rows %s", self._name(), seconds, self._kind)
        if self.assignment.tp_index:
            text = f"rank {self.assignment.tp_index} of its replica, whose first rank answers"
            return {"name": self.service.name, "error_code": Code.ESTATE, "error_text": text}
        self._rows = self._kind
        return self._description(
            engine=one_line(self._engine, NAME_SIZE - 1),
            version=self.service.version,
            overwrites=overwrites,
            rows=self._rows,
        )

    def step(self, timeout: float = IDLE) -> bool:
        """Answer one batch, or wait for one in vain; or go on with what runs in steps.

        Returns:
            False when every simulation rank has left.
        """
        batch = None
        try:
            if self._native and not self.failed:
                self.lib.serve_echo(timeout)
            elif self._stepper and not self._stepper.room:
                self.lib.poll()
            else:
                batch = self.lib.next_batch(0.0 if self.busy else timeout)
        except ClosedError:
            return False
        except ChangeError:
            self.change(self.lib.change_get())
        if batch is not None:
            self.answer(batch)
        elif not self.busy:
            self._silence.look()
        self.go_on()
        self.look()
        return True

    @property
    def busy(self) -> bool:
        """Whether there is something to go on with, so that it must not wait for requests."""
        return self._stepper is not None and self._stepper.busy

    @property
    def idle(self) -> bool:
        """Whether every request that the model took has its answer."""
        return self._stepper is None or self._stepper.idle

    def go_on(self) -> None:
        """Take one step with what was begun, if the model works in steps."""
        if self._stepper:
            self._stepper.go_on()

    def answer(self, batch: core.Batch) -> None:
        """Run the model on a batch and reply; an exception is the reply to who caused it.

        A model that works in steps takes the requests, and they are answered by `go_on`.
        """
        if self._stepper:
            self._stepper.take(batch)
            return
        if self._alone and not self.backend.together:
            waiting = self.lib.queue_rows(batch.service)
            if not self._alone.look(batch.requests, batch.rows, waiting):
                self._alone = None

        def done(rows: int) -> None:
            self.lib.reply_rows(rows, batch.outputs)

        try:
            if self.backend.wants_clients:
                self.backend.clients = self.lib.batch_clients()
            result = self._results(self._given(batch.inputs), batch.outputs, done)
            outputs = self._checked(result, batch.outputs, batch.rows)
        except BaseException as error:
            check_interrupt()
            self._fail(batch, self._report(error))
        else:
            self.lib.reply(outputs)

    def change(self, order: Order) -> None:
        """Do what a client asks of the model, or begin with it."""
        self._changes.begin(order)

    def look(self) -> None:
        """See whether a change of the model that was begun can end."""
        if self._changes.pending:
            self._changes.look()

    @property
    def changing(self) -> bool:
        """Whether a client is changing the version."""
        return self._changes.open

    def rest(self) -> None:
        """Let the model go, until `put`; nothing is to be under way."""
        self.resting = True
        if not isinstance(self.backend, Unloaded):
            self._put(Resting(self._versions.now))

    def load_again(self) -> Backend:
        """Load the version that answers elsewhere; in any thread, and nothing is changed here.

        Raises:
            Exception: Whatever the model raises.
        """
        if isinstance(self.backend, Unloaded):
            return Unloaded(self._versions.now)
        return self._loader.load(self._versions.now)

    def put(self, backend: Backend) -> None:
        """Answer with what `load_again` gave."""
        self.resting = False
        self._put(backend)

    def enter(self) -> None:
        """Enter what the backend needs while it serves."""
        if not self.failed:
            what = "cannot enter what it needs to serve"
            self._failures.attempt(
                what, lambda: self._serving.enter_context(self.backend.serving())
            )
            self._announced = True
            self._agree_rows()

    def close(self) -> None:
        """Let the model go, and what it needed; called once, at the end."""
        self._leave()
        if not self.failed:
            self.let_go(self.backend)

    def _leave(self) -> None:
        self._failures.attempt("could not leave what it needed to serve", self._serving.close)

    def let_go(self, backend: Backend) -> None:
        """Close a model, which keeps nobody from an answer if it raises."""
        self._failures.attempt("could not close a model", backend.close)

    def summary(self) -> str:
        """Say in one line what this rank has done."""
        return notices.summary(self._name(), self.lib.counters())

    @property
    def broken(self) -> bool:
        """Whether messages among the ranks of this replica may be under way for ever."""
        part = self._head or self._follower
        return bool(part and part.broken)

    @property
    def _shared(self) -> MPI.Comm | None:
        """The ranks of this replica, if there are several."""
        return self._comm if self._comm is not None and self.service.tensor_parallel > 1 else None

    def _join(self) -> None:
        """Become head or follower of the ranks that run this replica together."""
        from mpiserve.serving import tensor_parallel

        parts: tuple[Any, ...] = (self.lib, self._comm, self._part, self._inputs)
        seconds = self.service.peer_timeout_s
        if self.assignment.tp_index:
            change = self._follow
            self._follower = tensor_parallel.Follower(*parts, seconds, change=change)
        else:
            self._head = tensor_parallel.Head(*parts, seconds)

    def _part(self, inputs: tuple[np.ndarray, ...]) -> list[Any]:
        """Run this rank's part; nothing is written to the broker's memory until all agree."""
        return ordered(self.backend.run(self.backend.given(inputs)), self.service)

    def _inputs(self, rows: int) -> tuple[np.ndarray, ...]:
        return zeros(self.service.inputs, rows)

    def _name(self) -> str:
        version = f" {self._versions.now.version}".rstrip()
        model = self._versions.now.model or ""
        engine = self._engine or one_line(f"{self.service.backend} {model}")
        return f"service {self.service.name}{version}, replica {self.assignment.replica} ({engine})"

    def _note(self, remark: str) -> None:
        """Log what is to be known of a model, once for all replicas and versions."""
        first = not self.assignment.replica and not self.assignment.tp_index
        if remark not in self._remarks and first:
            logger.warning("service %s: %s", self.service.name, remark)
        self._remarks.add(remark)

    @property
    def _kind(self) -> str:
        return "together" if self.backend.together else "independent"

    def _agree_rows(self) -> None:
        """Batch as the model that answers needs it, which may be of another kind than the first."""
        if isinstance(self.backend, (Resting, Unloaded)):
            return  # which answer nothing
        if self._announced and self._rows != self._kind:
            self._rows = self._kind
            self.lib.set_rows(self.place, self._rows)
            logger.info("%s answers requests with rows %s now", self._name(), self._rows)

    def _again(self, service: ServiceConfig) -> Backend:
        """Load a version at run time, in step with the other ranks of the replica."""
        if self.resting:
            return Resting(service)  # it is loaded when this rank takes the service
        begin = time.monotonic()
        what = f"version {service.version}" if service.version else "the model anew"
        try:
            old = None if isinstance(self.backend, Unloaded) else self.backend
            with notices.loading(f"{what} of {self._name()}"):
                backend = self._loader.load(service, old)
        except BaseException as error:
            check_interrupt()
            self._failures.log(f"cannot load {what}", error)
            raise ModelError(Code.EMODEL, describe(error)) from None
        logger.info("%s loaded %s in %.1f s", self._name(), what, time.monotonic() - begin)
        return backend

    def _put(self, backend: Backend) -> None:
        """Answer with another backend, between two batches, while no request is held."""
        self._leave()
        self.backend, old = backend, self.backend
        self._engine, self._native = engine_of(backend), backend.native
        self._agree_rows()
        if backend.steps and old.steps:
            what = "could not take over what the version before had begun"
            self._failures.attempt(what, backend.steps.take_over, old.steps)
        self._stepper = self._stepper_of(backend)
        if not self._follower:
            self.enter()
        self.let_go(old)  # what fails there does not keep the other one from answering
        del old
        gc.collect()  # models are full of circles
        if not self.resting:
            logger.info("%s answers now", self._name())

    def _stepper_of(self, backend: Backend) -> Stepper | None:
        """Make what leads a model that works in steps; several ranks run batches alone."""
        if not backend.steps or self._shared:
            return None
        return Stepper(self.lib, backend.steps, self._finished, self._report)

    def _tell(self, what: int, version: str) -> None:
        if self._head:
            self._head.change(what, version)

    def _follow(self, what: int, version: str) -> None:
        try:
            self._versions.do(what, version)
        except BaseException:  # the head fails alike, and tells the client
            check_interrupt()

    def _description(self, **outcome: Any) -> dict[str, Any]:
        return {
            "name": self.service.name,
            "inputs": [signature(tensor) for tensor in self.service.inputs],
            "outputs": [signature(tensor) for tensor in self.service.outputs],
            "max_batch_rows": self.service.max_batch_rows,
            "max_delay_us": self.service.max_delay_us,
            "pool_bytes": self.service.pool_bytes,
            "stickiness": self.service.stickiness,
            "max_queue_rows": self.service.max_queue_rows,
            "on_full": self.service.on_full,
            "replica": self.assignment.replica,
            **outcome,
        }

    def _checked(
        self, result: Any, outputs: tuple[np.ndarray, ...], rows: int
    ) -> Sequence[np.ndarray]:
        if result is outputs:
            return outputs
        return self._finished(result, rows)

    def _finished(self, result: Any, rows: int) -> list[np.ndarray]:
        results = ordered(result, self.service)
        return [
            checked(array, tensor, dtype, rows)
            for array, tensor, dtype in zip(
                results, self.service.outputs, self._dtypes, strict=True
            )
        ]

    def _results(
        self,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        done: Callable[[int], None],
    ) -> Any:
        if self._head:
            return self._head.run(inputs)
        return self.backend.run_batch(inputs, outputs, done)

    def _run_rows(
        self, inputs: tuple[np.ndarray, ...], clients: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Run the model on rows of requests whose batch is over."""
        if self.backend.wants_clients:
            self.backend.clients = clients
        outputs = zeros(self.service.outputs, len(clients))
        result = self._results(self._given(inputs), outputs, lambda _: None)
        return self._checked(result, outputs, len(clients))

    def _given(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Copies, if the model needs some; ranks that run it together make their own."""
        return inputs if self._head else self.backend.given(inputs)

    def _report(self, error: BaseException) -> str:
        """Log a failure of a batch, and put it into one line."""
        text = self._failures.once(error)
        return text + READ_ONLY if isinstance(error, ValueError) and "read-only" in text else text

    def _fail(self, batch: core.Batch, text: str) -> None:
        """Answer a batch that failed: with what is right for each request, or the error."""
        split = self.service.split_failed and batch.requests > 1 and not self.broken
        if not (split and self._splitter.split(batch)):
            self.lib.fail_batch(Code.EMODEL, text)


def refuse(lib: core.Session, name: str, error: Error) -> None:
    """Announce that this rank can serve nothing, and stay until everybody has left."""
    lib.publish({"name": name, "error_code": int(error.code), "error_text": error.text})
    while True:
        try:
            lib.next_batch(IDLE)
        except ClosedError:
            return


def signature(tensor: TensorConfig) -> Tensor:
    """A tensor as the broker publishes it."""
    return Tensor(tensor.name, tensor.dtype, tensor.shape)
