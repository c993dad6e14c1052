"""Load, publish, run, change and close one model on an inference rank, and answer its batches."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.arrays import finished, room_for, zeros
from mpiserve.backends.base import Backend, ordered
from mpiserve.config import NAME_SIZE, ServiceConfig
from mpiserve.config.partition import Assignment
from mpiserve.errors import Code, ModelError
from mpiserve.failure import check_interrupt, describe, one_line, reply_code
from mpiserve.observe import notices
from mpiserve.observe.log import Failures
from mpiserve.serving import engines
from mpiserve.serving.absent_model import Absent, Suspended, Unloaded
from mpiserve.serving.description import description
from mpiserve.serving.failed_batch import Splitter
from mpiserve.serving.in_c import InC
from mpiserve.serving.isolation import local_model
from mpiserve.serving.isolation.loader import loader_of
from mpiserve.serving.placement.placer import Placer, stepper_of
from mpiserve.serving.reload import Changes

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve._lib import core
    from mpiserve.observe.capture import Capture
    from mpiserve.serving import restarting
    from mpiserve.serving.continuous import Stepper

logger = logging.getLogger("mpiserve")

READ_ONLY = ' (a model that writes to its input needs input_memory = "copy")'

Arrays = tuple[np.ndarray, ...]


class ServedModel:
    """The model of one service, on one rank of a replica.

    The rank's `Worker` calls it.

    Attributes:
        index: Which of the services of this rank it is: 0, 1, ...
        configured: The service's table, as it is written in the configuration.
        current: The same table for the version that answers.
        backend: The backend that runs the model.
        sole: Whether it is the only model of its rank: then the library may run its engine.
        changes: Handles requests to change the model.
        loader: Loads its versions.
        follower: On the other ranks of the replica: follows its head.
        failed: Whether the model could not be loaded. The rank then stays, so that
            the world can close, and every call of a client is an error.
        suspended: Whether it is unloaded until `resume`: for another model, or as a spare.
        stopped: Whether it must not serve: a spare that nobody needs, or stopped by a client.
        batches: Batches answered or held so far.
        rows: Rows in them.
        seconds: Seconds spent on them, in an adaptive pool.
        stepper: Holds the requests of a model that works in steps.
    """

    def __init__(
        self,
        lib: core.Session,
        assignment: Assignment,
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
        index: int = 0,
        capture: Capture | None = None,
    ) -> None:
        self._lib, self._capture = lib, capture
        self.assignment = assignment
        self.index = index
        self.configured = assignment.service
        self.service = self.current = assignment.service.of_version()
        self.backend = Backend(self.service)
        self.follower: restarting.Follower | None = None
        self.sole = self.failed = self.suspended = self.stopped = False
        self._announced, self._state = False, self.backend.availability
        self.batches, self.rows, self.seconds = 0, 0, 0.0
        self.changes = Changes(lib, self)
        self._head: restarting.Head | None = None
        self._comm = comm
        self.loader = loader_of(comm, lib, self.service, local_rank, self._note)
        self._remarks: set[str] = set()
        self._kind = ""  # of rows, as clients were told
        self._life = notices.Life(self.name)
        self.stepper: Stepper | Placer | None = None
        self._in_c = InC(lib, self, local_rank)
        self._room = True  # as the broker was told
        self._engine = ""  # of the model that answers, once it is loaded
        self._failures = Failures(self.name)
        self._splitter = Splitter(lib, self._run_rows, self._report)
        crowded = notices.Crowded(lib, index, self.service.name, self.service.max_batch_rows)
        self._crowded = None if self.service.has_free_dims else crowded
        self._serving = ExitStack()  # what the backend needs while it serves

    # ---- start and end

    def prepare(self) -> dict[str, Any]:
        """Load the model and warm it up.

        Returns:
            The description to publish: of the service, or of the error.
        """
        begin, wrong = time.monotonic(), ""
        try:
            local = local_model.published(self.service)
            with notices.loading(self.name()):
                self.backend = self.loader.load(self.service)
            self.backend.native = self.backend.native if self.sole else None
            self._engine = engines.engine_of(self.backend)
            overwrites = bool(self.backend.overwrites)
        except BaseException as error:
            check_interrupt()
            self._failures.log("cannot be served", error)
            wrong = describe(error)
        if wrong:
            self.failed = True
            return self._describe(error_code=Code.EMODEL, error_text=wrong)
        self._start()
        self._kind = self.service.kind_of_rows(self.backend.together)
        text = "%s is ready after %.1f s, rows %s"
        logger.info(text, self.name(), time.monotonic() - begin, self._kind)
        if self.follower:
            text = f"rank {self.assignment.tp_index} of its replica, whose first rank answers"
            return {"name": self.service.name, "error_code": Code.ESTATE, "error_text": text}
        return self._describe(
            engine=one_line(self._engine, NAME_SIZE - 1),
            version=self.service.version,
            overwrites=overwrites,
            rows=self._kind,
            **local,
        )

    def _describe(self, **outcome: Any) -> dict[str, Any]:
        spare = self.assignment.spare
        return description(self.service, self.assignment.replica, spare=spare, **outcome)

    def _start(self) -> None:
        """Become head or follower of the ranks that run the model together, or work alone."""
        if not self._shared:
            self.stepper = self._stepper_of(self.backend)
            return
        from mpiserve.serving import restarting

        seconds, change = self.service.peer_timeout_s, self.changes.follow
        make_zeros = partial(zeros, self.service.inputs)
        parts: tuple[Any, ...] = (self._lib, self._comm, self._run_part, make_zeros, seconds)
        if self.assignment.tp_index:
            self.follower = restarting.Follower(lambda: self.backend, *parts, change=change)
        else:
            self._head = restarting.Head(lambda: self.backend, *parts)

    def enter(self) -> None:
        """Enter what the backend needs while it serves."""
        if not self.failed and not self.follower:
            what, enter = "cannot enter what it needs to serve", self._serving.enter_context
            self._failures.attempt(what, lambda: enter(self.backend.serving()))
            self._announced = True
            self._agree_rows()
            self._failures.attempt("cannot use its engine", self._in_c.enter)
            if self._capture:
                self._capture.enter(self.index, self.current.version)

    def close(self) -> None:
        """Stop the followers and close the model, at the end. PeerError: a follower is gone."""
        if self._crowded and not self.stepper:
            self._crowded.say()
        if self._head:
            self._head.stop()
        self._leave()
        self.let_go(self.backend)

    def _leave(self) -> None:
        self._in_c.leave()
        self._failures.attempt("could not leave what it needed to serve", self._serving.close)

    # ---- what it is

    def name(self) -> str:
        """Name it in a log: the service, its version, the replica and what runs it."""
        version = f" {self.current.version}".rstrip()
        model = self.current.model or ""
        engine = self._engine or one_line(f"{self.service.backend} {model}")
        return f"service {self.service.name}{version}, replica {self.assignment.replica} ({engine})"

    @property
    def busy(self) -> bool:
        """Whether the model has work left, so that the worker must not wait for requests."""
        return self.stepper is not None and self.stepper.busy

    @property
    def idle(self) -> bool:
        """Whether every request that the model holds has been answered."""
        return self.stepper is None or self.stepper.idle

    @property
    def broken(self) -> bool:
        """Whether messages among the ranks of this replica may be under way for ever."""
        part = self._head or self.follower
        return bool(part and part.broken)

    @property
    def loads_aside(self) -> bool:
        """Whether a version can be loaded in a thread, while batches are answered."""
        return self._shared is None and self.service.reload == "beside"

    @property
    def _shared(self) -> MPI.Comm | None:
        """The ranks of this replica, if there are several."""
        return self._comm if self._comm is not None and self.service.tensor_parallel > 1 else None

    def _note(self, remark: str) -> None:
        """Log a remark about the model, once for all replicas and versions."""
        first = not self.assignment.replica and not self.assignment.tp_index
        if remark not in self._remarks and first:
            logger.warning("service %s: %s", self.service.name, remark)
        self._remarks.add(remark)

    # ---- batches

    def supervise(self) -> None:
        """Watch the backend; let other replicas answer while it cannot, or if it never will."""
        head = self._head
        (head or self.backend).supervise()
        if self._in_c.look():
            self._engine = engines.engine_of(self.backend)
        if self._crowded and not self.stepper:  # which holds requests: others may wait for room
            self._crowded.look()
        state = "failed" if head and head.broken else self.backend.availability
        if state != self._state and not self.stopped:
            self._state = state
            away = state == "restarting" or (state == "failed" and self.assignment.backed)
            if not self.assignment.pool:
                self._lib.suspend(self.index, away)
            self.enter_state(state)

    def update_room(self) -> None:
        """Keep requests in the queue while the model has no room for more."""
        room = self.stepper is None or self.stepper.room
        if room != self._room:
            self._room = room
            self._lib.set_room(self.index, room)

    def answer(self, batch: core.Batch) -> None:
        """Run the model on a batch and reply: its outputs, or its exception.

        A model that works in steps holds the requests, and `go_on` answers them.
        """
        self.batches += 1
        self.rows += batch.rows
        if self.stepper:
            self.stepper.take(batch)
        else:
            self._answer_whole(batch)

    def _answer_whole(self, batch: core.Batch) -> bool:
        """Run the model on a batch that is answered at once; return whether it could."""
        if batch.failure:
            self._in_c.warn(batch.failure)
        try:
            outputs = self._outputs(batch)
        except BaseException as error:
            check_interrupt()
            self._fail(batch, self._report(error), reply_code(error))
            return False
        self._lib.reply(outputs)
        return True

    def go_on(self) -> None:
        """Run one step on the held requests, if the model works in steps."""
        if self.stepper:
            with self.timed() if self.busy else nullcontext():
                self.stepper.go_on()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of this context to `seconds`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - begin

    def _outputs(self, batch: core.Batch) -> Sequence[np.ndarray]:
        def done(rows: int) -> None:
            self._lib.reply_rows(rows, batch.outputs)

        if self.backend.wants_clients:
            self.backend.clients = self._lib.batch_clients()
        result = self._results(self._given(batch.inputs), batch.outputs, done)
        return result if result is batch.outputs else self._finished(result, batch.rows)

    def _run_rows(self, inputs: Arrays, clients: np.ndarray) -> Sequence[np.ndarray]:
        """Run the model on rows of requests whose batch is over."""
        if self.backend.wants_clients:
            self.backend.clients = clients
        outputs = room_for(self.service, len(clients))
        given = self._given(inputs)
        result = (
            self._head.run(given, part=True)
            if self._head
            else self.backend.rerun_rows(given, outputs)
        )
        return result if result is outputs else self._finished(result, len(clients))

    def _results(self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]) -> Any:
        if self._head:
            return self._head.run(inputs)
        return self.backend.run_batch(inputs, outputs, done)

    def _given(self, inputs: Arrays) -> Arrays:
        """Copy the inputs if the model needs copies; ranks that run it together make their own."""
        return inputs if self._head else self.backend.given(inputs)

    def _run_part(self, inputs: Arrays) -> list[Any]:
        """Run this rank's part; nothing is written to the broker's memory until all agree."""
        return ordered(self.backend.run(self.backend.given(inputs)), self.service)

    def _finished(self, result: Any, rows: int) -> list[np.ndarray]:
        return finished(result, self.service, rows)

    def _report(self, error: BaseException) -> str:
        """Log a failure of a batch, and describe it in one line."""
        text = self._failures.once(error)
        return text + READ_ONLY if text.startswith("ValueError:") and "read-only" in text else text

    def _fail(self, batch: core.Batch, text: str, code: int) -> None:
        """Answer a batch that failed: rerun it in halves, or send the error to all its requests."""
        split = self.service.split_failed and batch.requests > 1 and not self.broken
        if not (split and self._lib.wanted() and self._splitter.split(batch)):
            self._lib.fail_batch(code, text)

    # ---- another version, or none

    def load_version(self, version: ServiceConfig) -> Backend:
        """Load a version at run time, in step with the other ranks of the replica.

        Raises:
            ModelError: If it cannot be loaded, with the reason.
        """
        if self.suspended:
            return Suspended(version)  # it is loaded when this rank takes the service
        begin = time.monotonic()
        what = f"version {version.version}" if version.version else "the model anew"
        try:
            old = None if isinstance(self.backend, Unloaded) else self.backend
            with notices.loading(f"{what} of {self.name()}"):
                backend = self.loader.load(version, old)
        except BaseException as error:
            check_interrupt()
            self._failures.log(f"cannot load {what}", error)
            raise ModelError(Code.EMODEL, describe(error)) from None
        logger.info("%s loaded %s in %.1f s", self.name(), what, time.monotonic() - begin)
        return backend

    def put(self, backend: Backend, version: ServiceConfig) -> None:
        """Replace the backend, between two batches, while no request is held."""
        self._leave()
        if self.service.cache_rows:
            self._lib.set_engine(self.index, None)  # which forgets the answers of the old one
        self.backend, old = backend, self.backend
        self.current = version
        self._engine = engines.engine_of(backend)
        self._agree_rows()
        if backend.steps and old.steps:
            what = "could not take over what the version before had begun"
            self._failures.attempt(what, backend.steps.take_over, old.steps)
        self.stepper = self._stepper_of(backend)
        self.update_room()
        self.enter()
        was_unloaded = isinstance(old, Unloaded)
        self.let_go(old)  # what fails there does not keep the other one from answering
        del old
        gc.collect()  # models are full of circles
        if not self.suspended:
            logger.info("%s answers now", self.name())
        if isinstance(backend, Unloaded):
            self.enter_state("launched")
        elif was_unloaded and not self.suspended:
            self.enter_state("ready")

    def enter_state(self, state: str) -> None:
        """Let clients read, and log, in which state the service is on this rank."""
        if not self._announced or (self.stopped and state != "launched"):
            return
        self._life.enter(state)
        self._lib.set_state(self.index, state)

    def unload(self) -> None:
        """Close the model; every batch is an error from then on."""
        self.put(Unloaded(self.current), self.current)

    def change_followers(self, change: int, version: str) -> None:
        """Have the other ranks of the replica make a change, as this one does next."""
        if self._head:
            self._head.change(change, version)

    def let_go(self, backend: Backend) -> None:
        """Close a model; log its exception, so that requests are still answered."""
        self._failures.attempt("could not close a model", backend.close)

    def _stepper_of(self, backend: Backend) -> Stepper | Placer | None:
        """Make what holds requests of a model; several ranks run whole batches only."""
        parts = (self._lib, self.index, backend, self._answer_whole, self._finished, self._report)
        return None if self._shared else stepper_of(*parts)

    def _agree_rows(self) -> None:
        """Tell the broker whether the new model takes rows together, if that has changed."""
        kind = self.service.kind_of_rows(self.backend.together)
        if isinstance(self.backend, Absent) or not self._announced or kind == self._kind:
            return
        self._kind = kind
        self._lib.set_rows(self.index, kind)
        logger.info("%s answers requests with rows %s now", self.name(), kind)

    # ---- in an adaptive pool

    def suspend(self) -> None:
        """Close the model until `resume`; no request may be held."""
        self.suspended = True
        if not isinstance(self.backend, Unloaded):
            self.put(Suspended(self.current), self.current)

    def load_again(self) -> Backend:
        """Load the version that other ranks answer with, in any thread; change nothing here."""
        unloaded = isinstance(self.backend, Unloaded)
        return Unloaded(self.current) if unloaded else self.loader.load_again(self.current)

    def resume(self, backend: Backend) -> None:
        """Answer with the backend that `load_again` returned."""
        self.suspended = False
        self.put(backend, self.current)
