"""The backend of an inference rank whose model runs in a child process."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.base import Backend, Native
from mpiserve.backends.ragged import result_counts
from mpiserve.errors import Code, Error, ModelError
from mpiserve.failure import describe
from mpiserve.serving.isolation.channel import SEGMENT, Place, reshaped
from mpiserve.serving.isolation.isolated_steps import IsolatedSteps
from mpiserve.serving.isolation.located import Early, Located
from mpiserve.serving.isolation.messages import Loaded, Order
from mpiserve.serving.isolation.process import CLOSE, ChildProcess, LostError
from mpiserve.serving.isolation.restarts import Restarts
from mpiserve.serving.isolation.server_link import ForkServer, without_mpi
from mpiserve.serving.loading import Known

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.config import ServiceConfig

Arrays = tuple[np.ndarray, ...]
LOOK = 0.05  # seconds between two looks whether the child lives
RETRY = 1.0  # seconds between two tries to start a child that no request has asked for
SHAPES = 256  # numbers of rows whose arrays are kept

logger = logging.getLogger("mpiserve")


class Isolated(Backend):
    """Has a child process load and run the model, and starts another one when that is lost.

    Args:
        lib: The session handle of this rank.
        service: The table of the service.
        server: The fork server.
        local_rank: Position among the inference ranks of this node.
        tuning: The tuning of the version before.
        in_c: Whether an engine in C ran the version before; None if there was none.

    Attributes:
        in_c: Whether an engine in C was chosen; None if that is not decided.
        remarks: Remarks for the user about the model.
    """

    steps: IsolatedSteps | None = None

    def __init__(
        self,
        lib: core.Session,
        service: ServiceConfig,
        server: ForkServer,
        local_rank: int,
        tuning: Any = None,
        in_c: bool | None = None,
    ) -> None:
        super().__init__(service, None, local_rank)
        self.tune_result, self.in_c = tuning, in_c
        self.remarks: tuple[str, ...] = ()
        self._lib = lib
        self._server = server
        self._lock = threading.RLock()  # a restart may be in a thread
        self._child: ChildProcess | None = None
        self._starting: ChildProcess | None = None  # that loads the model now
        self._known: Known | None = None
        self._engine = ""
        self._restarts = Restarts(service.restarts, service.restart_window_s)
        self._given_up = ""
        self._entered = self._closed = False
        self._look_at = self._try_at = 0.0
        self._thread: threading.Thread | None = None
        self._views: dict[int, tuple[Arrays, Arrays, Any]] = {}
        self._segments: list[Any] | None = None  # that the child maps; None: not tried yet
        self._batches: dict[int, Located] = {}

    @property
    def engine(self) -> str:
        """What runs the model in the child."""
        return self._engine

    # ---- the child

    def load(self) -> None:
        """Load the model in a new child, and warm it up there.

        Raises:
            Error: If it cannot be loaded, with the text of the reason.
        """
        self._child = self._started()

    def _started(self) -> ChildProcess:
        """Start a child that has loaded the model."""
        child = self._starting = self._forked()
        if self._closed:  # abandon() did not see it
            child.kill()
        limit = self.service.load_timeout_s
        what = "while it loaded the model or warmed it up"
        try:
            loaded = child.call("load", self._order(), limit=limit, what=what, key="load_timeout_s")
            if self._entered:
                child.call("enter", limit=limit, what=what, key="load_timeout_s")
        except BaseException:
            child.end()
            raise
        finally:
            self._starting = None
        self._take(loaded)
        self._views, self._batches, self._segments, self.forwards_to = {}, {}, None, None
        return child

    def _forked(self) -> ChildProcess:
        return ChildProcess(self._server, self.service, wanted=self._wanted)

    def _wanted(self) -> bool:
        """Whether a simulation rank still wants answers, as far as this thread may ask."""
        may_ask = self._entered and threading.current_thread() is threading.main_thread()
        return not may_ask or self._lib.wanted()

    def _order(self) -> Order:
        return Order(
            self.service,
            self.local_rank,
            tuple(sys.path),
            without_mpi(os.environ),
            frozenset(os.sched_getaffinity(0)),
            logger.getEffectiveLevel(),
            self.tune_result,
            self.in_c,
            self._known,
        )

    def _take(self, loaded: Loaded) -> None:
        """Take over the attributes of the backend in the child."""
        self._engine, self.wants_clients = loaded.engine, loaded.wants_clients
        self.together, self.tune_result = loaded.together, loaded.tuning
        self.remarks = loaded.remarks
        if self._known is None:
            self.to_compile = loaded.to_compile
        self._known = Known(loaded.together, loaded.copies, loaded.tuning, loaded.native)
        self.in_c = None if self.to_compile else loaded.native is not None
        self.native = loaded.native if self.service.isolate == "auto" else None
        self._server.load(loaded.libraries, self.service.threads, later=True)
        if loaded.steps and not self.steps:
            self.steps = IsolatedSteps(self._working, self._lose, self.service.timeout_s)
        if loaded.steps and self.steps:
            self.steps.state, self.steps.takes_over = loaded.steps, loaded.takes_over

    @property
    def known(self) -> Known | None:
        """What warm-up has found out about the model."""
        return self._known

    def adopt(self, native: Native) -> None:
        """Have an engine in C run the model, which another process has chosen.

        Raises:
            Error: If the child finds that it is not this model's, or is lost.
        """
        limit, what = self.service.load_timeout_s, "while it compared an engine with the model"
        try:
            self._working().call("adopt", native, limit=limit, what=what, key="load_timeout_s")
        except LostError as error:
            self._lose(error)
            raise
        assert self._known
        self._known = self._known._replace(native=native)
        self._engine = native.text
        self.native = native if self.service.isolate == "auto" else None
        self._forward_in_c()

    def _forward_in_c(self) -> None:
        """Let the library hand batches over from the first one on, if an engine in C gets them."""
        child, known = self._child, self._known
        if self.service.isolate is not True or not (child and known and known.native):
            return
        if self._segments is None:
            self._segments = self._attached(child)
        if self._segments:
            self.forwards_to = child

    def _working(self) -> ChildProcess:
        """Return the child; start another one if it is lost.

        Raises:
            ModelError: If it cannot be started, or not any more.
        """
        with self._lock:
            if self._given_up:
                raise ModelError(Code.EMODEL, self._given_up)
            if self._closed:
                raise ModelError(Code.EMODEL, "the model is closed")
            if self._child is None:
                self._child = self._again()
            return self._child

    def _again(self) -> ChildProcess:
        begin = time.monotonic()
        try:
            child = self._started()
        except BaseException as error:
            self.failing, text = True, describe(error)
            self._lose(LostError(Code.EMODEL, text))
            raise ModelError(Code.EMODEL, f"the model cannot be started again: {text}") from error
        self.failing = False
        name, ms = self.service.name, (time.monotonic() - begin) * 1e3
        logger.warning("service %s: its process is started again after %.0f ms", name, ms)
        return child

    def _lose(self, error: LostError, *, part: bool = False) -> None:
        """Note that the child is lost; give the replica up if that has happened too often."""
        self._child = self.forwards_to = None
        if self._restarts.count(time.monotonic(), part=part):
            return
        service = self.service
        often = f"restarts = {service.restarts} within {service.restart_window_s:g} s"
        self.failing = True
        self._given_up = f"this replica is given up after {often}; the last: {error.text}"
        logger.error("service %s: %s", service.name, self._given_up)

    # ---- batches

    def run_batch(self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]) -> Any:
        """Run the model on one batch, in the child.

        Raises:
            Error: If the model fails, or its process is lost.
        """
        return self._run(inputs, outputs, done, part=False)

    def rerun_rows(self, inputs: Arrays, outputs: Arrays) -> Any:
        """Run the model on rows of a batch that has failed before."""
        return self._run(inputs, outputs, lambda _: None, part=True)

    def _run(self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None], part: bool) -> Any:
        for again in (True, False):
            try:
                results = self._run_once(inputs, outputs, done)
                break
            except LostError as error:
                self._lose(error, part=part)
                if error.taken or not again:  # else it had died before this batch
                    raise
        self._restarts.succeed()
        return results

    def _run_once(self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]) -> Any:
        child, rows = self._working(), len(inputs[0])
        if self.service.rows == "ragged":
            return self._run_ragged(child, inputs, outputs, done)
        batch = self._batches.get(id(inputs))
        if batch is None or batch.inputs is not inputs or batch.outputs is not outputs:
            batch = self._located(child, inputs, outputs)
        self._copy_in(child, batch)
        if self.service.has_free_dims:
            return self._run_any(child, batch, done)
        if batch.results is None:
            child.run(rows, batch.places, done, self.service.timeout_s)
            return outputs
        early = Early(batch.results, outputs, done)
        child.run(rows, batch.places, early, self.service.timeout_s)
        return early.finish()

    def _copy_in(self, child: ChildProcess, batch: Located) -> None:
        if batch.copied is not None:
            for array, mine in zip(batch.copied, batch.inputs, strict=True):
                np.copyto(reshaped(array, mine.shape), mine)
        if self.wants_clients:
            self._arrays(child, len(batch.inputs[0]))[2][:] = self.clients

    def _run_ragged(
        self, child: ChildProcess, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]
    ) -> Arrays:
        """Run a batch in which each row has as many rows of its own as the last arrays say."""
        batch, counts = self._located(child, inputs[:-1], outputs[:-1]), inputs[-1]
        outputs[-1][...] = result_counts(self.service, counts)  # not what the child might say
        self._copy_in(child, batch)
        child.run(len(counts), batch.places, done, self.service.timeout_s, counts)
        return outputs if batch.results is None else (*batch.results, outputs[-1])

    def _run_any(self, child: ChildProcess, batch: Located, done: Callable[[int], None]) -> Arrays:
        """Run a batch with free dimensions: nobody knows those of its results before."""
        given, limit = [array.shape for array in batch.inputs], self.service.timeout_s
        shapes = child.run(len(batch.inputs[0]), batch.places, done, limit, given)
        room = batch.outputs if batch.results is None else batch.results
        return tuple(reshaped(*pair) for pair in zip(room, shapes, strict=True))

    def _located(self, child: ChildProcess, inputs: Arrays, outputs: Arrays) -> Located:
        """Find where the tensors of a batch lie. The arrays repeat, so that is kept."""
        mine, results, _ = self._arrays(child, len(inputs[0]))
        own, n = child.places(), len(inputs)
        given, wanted = self._places(child, inputs), self._places(child, outputs)
        places = [*(given or own[:n]), *(wanted or own[n:-1]), own[-1]]
        flat = tuple(number for place in places for number in place)
        batch = Located(inputs, outputs, flat, None if given else mine, None if wanted else results)
        if len(self._batches) >= SHAPES:
            self._batches.clear()
        # Others, of the splitter, come once; those with free dimensions are new each time, and the
        # child must learn them.
        if self.service.has_free_dims:
            return batch
        if given or wanted:
            self._batches[id(inputs)] = batch
        if given and wanted and not self.wants_clients:
            self.forwards_to = child
        return batch

    def _places(self, child: ChildProcess, arrays: Arrays) -> list[Place] | None:
        """Return the places of arrays in memory of the rank, if all lie there."""
        if self._segments is None:
            self._segments = self._attached(child)
        places = []
        for array in arrays:
            found = self._lib.locate(array) if self._segments else None
            if found is None:
                return None
            places.append((SEGMENT + found[0], found[1]))
        return places

    def _attached(self, child: ChildProcess) -> list[Any]:
        """Have the child map the memory in which batches lie; without it they are copied."""
        segments = self._lib.segments()
        writable = self._lib.writable(self.service.name)
        ids = [
            (os.getpid(), file, size, parts)
            for (file, _, size), parts in zip(segments, writable, strict=True)
        ]
        try:
            child.call("attach", ids, limit=self.service.load_timeout_s, what="while it attached")
        except LostError:
            raise
        except Error as error:
            text = "service %s: batches are copied, since its process cannot map them: %s"
            logger.warning(text, self.service.name, error)
            return []
        return segments

    def _arrays(self, child: ChildProcess, rows: int) -> tuple[Arrays, Arrays, Any]:
        found = self._views.get(rows)
        if found is None:
            if len(self._views) >= SHAPES:
                self._views.clear()
            found = self._views[rows] = child.arrays(rows)
        return found

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Have each child enter what it needs to serve."""
        what = "while it entered what it needs to serve"
        self._entered = True
        try:
            self._working().call("enter", limit=self.service.load_timeout_s, what=what)
            self._forward_in_c()
        except LostError as error:
            self._lose(error)
            raise
        try:
            yield
        finally:
            self._entered = False
            if self._child:
                what = "while it left what it needed to serve"
                self._child.call("leave", limit=CLOSE, what=what)

    def supervise(self) -> None:
        """Start another child if this one is lost; called after each batch, and now and then."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK
        if self._thread:
            if not self._thread.is_alive():
                self._thread, self.unavailable = None, False
            return
        if self._given_up or self._closed:
            return
        child = self._child
        if child and child.dead:
            error = child.lost()
            logger.warning("service %s: %s", self.service.name, error.text)
            self._lose(error)
        if self._child:
            self._forward_in_c()
        if self._child or now < self._try_at:
            return
        self._try_at = now + RETRY
        if self.service.replicas > 1 or self.elsewhere:  # they answer meanwhile
            self._thread = threading.Thread(target=self._restart, daemon=True)
            self._thread.start()
            self.unavailable = True
        else:
            self._restart()

    def _restart(self) -> None:
        with suppress(Error):  # it is logged, and the answer to the next request
            self._working()

    def abandon(self) -> None:
        """End a child that loads the model now, in any thread: that load fails, and later ones."""
        self._closed = True
        if child := self._starting:
            child.kill()

    def close(self) -> None:
        """Close the model, and end its process."""
        self.abandon()  # a restart in a thread has the lock for as long as a load may take
        with self._lock:
            child, self._child = self._child, None
            self.steps = self.forwards_to = None
            if child:
                child.close()
