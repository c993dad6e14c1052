"""Serve the models of one inference rank: receive requests, run batches, answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mpiserve.config.completion import origin
from mpiserve.errors import ChangeError, ClosedError, Error
from mpiserve.observe import notices
from mpiserve.serving.adaptive_pool import AdaptivePool
from mpiserve.serving.placement.placer import Placer
from mpiserve.serving.reload import ChangeRequest
from mpiserve.serving.served_model import ServedModel
from mpiserve.serving.starting import Starting

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve._lib import core
    from mpiserve.config import ServiceConfig
    from mpiserve.config.partition import Assignment
    from mpiserve.observe.capture import Capture

logger = logging.getLogger("mpiserve")

IDLE = 0.1  # seconds that a step waits for a batch, or that an engine in C goes on without Python


class Worker:
    """Serves one replica of a service, or of each service of a pool.

    A model that cannot be loaded fails its own service only.

    Args:
        lib: The session handle of this rank.
        assignment: The services of this rank.
        comm: The ranks of its replica.
        local_rank: Position among the inference ranks of this node.
        pool: The ranks of its adaptive pool, if it is of one.
        capture: What captures its services, if they are captured.

    Attributes:
        models: One for each service, in the order of the assignment.
    """

    def __init__(
        self,
        lib: core.Session,
        assignment: Assignment,
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
        pool: MPI.Comm | None = None,
        capture: Capture | None = None,
    ) -> None:
        self._lib = lib
        self._capture = capture
        self._replica = assignment.replica
        self.models = [
            ServedModel(lib, only(assignment, service), comm, local_rank, i, capture)
            for i, service in enumerate(assignment.services)
        ]
        _relate(self.models)
        self._starting = Starting(lib, self.models, assignment)
        self.models[0].sole = len(self.models) == 1 and pool is None
        self._pool: AdaptivePool | None = None
        if pool is not None and assignment.pool:
            self._pool = AdaptivePool(lib, self.models, pool, assignment.pool)
        self._silence = notices.Silence(lib)
        self._losses = notices.Losses(lib)
        rounds = [model.index for model in self.models if model.service.reproducible]
        self._irregular = [notices.Irregular(lib, index) for index in rounds]

    def serve(self, watch: Callable[[], None] | None = None) -> None:
        """Load the models, publish the services, and answer until every simulation rank has left.

        Args:
            watch: Called after every step, at least a few times a second.
        """
        self.start()
        follower = self.models[0].follower
        step = follower.step if follower else self.step
        while step():
            if watch:
                watch()
        if not follower:
            logger.info("%s", self.summary())
        self._end()

    def start(self) -> None:
        """Load the models and warm them up; publish each service, or the error of its model."""
        self._log_origins()
        if self._capture:
            self._capture.start([model.service for model in self.models])
        descriptions = self._prepare()
        with notices.publishing():
            self._lib.publish(*descriptions)
        if self._pool:
            self._pool.start()
        if self._capture:
            self._capture.wait()
            self._capture.begin()
        for model in self.models:
            model.enter()
        self._starting.announce()

    def step(self, timeout: float = IDLE) -> bool:
        """Answer one batch, or time out; then advance models that run in steps.

        Returns:
            False when every simulation rank has left.
        """
        busy = self._update_room()
        try:
            batch = self._next_batch(0.0 if busy else timeout)
        except ClosedError:
            return False
        except ChangeError:
            batch = None
            self._begin_change()
        if batch is not None:
            answerer = self._pool or self.models[batch.service]
            answerer.answer(batch)
        elif not busy:
            self._silence.look()
            self._losses.look()
        self._look_after()
        return True

    def _update_room(self) -> bool:
        """Tell the broker which models have room for requests.

        Returns:
            Whether a model has work left.
        """
        busy = False
        for model in self.models:
            if model.stepper:  # an empty call for each batch is dear beside a small model
                model.update_room()
                busy = busy or model.busy
        return busy

    def _begin_change(self) -> None:
        """Start the model change that a client requests."""
        self._starting.begin(ChangeRequest(*self._lib.change_get()))

    def _next_batch(self, timeout: float) -> core.Batch | None:
        if self._pool:
            timeout = min(timeout, self._pool.longest_wait)
        return self._lib.next_batch(timeout)

    def _look_after(self) -> None:
        """Advance models that run in steps; end changes; move models between ranks of a pool."""
        for model in self.models:
            if model.stepper:
                model.go_on()
            if model.changes.pending:
                model.changes.look()
            model.supervise()
        if self._starting.pending:
            self._starting.look()
        if self._pool:
            self._pool.look()
        if self._capture:
            self._capture.look()
        for rounds in self._irregular:
            rounds.look()

    def _prepare(self) -> list[dict[str, Any]]:
        """Load the models; return the description of each service to publish."""
        if self._pool:
            return self._pool.prepare()
        return [self._starting.prepare(model) for model in self.models]

    def _log_origins(self) -> None:
        """Say which tensors the files of models have said, once for all replicas."""
        for model in self.models:
            first = not model.assignment.replica and not model.assignment.tp_index
            if first and (text := origin(model.configured)):
                logger.info("%s", text)

    def _end(self) -> None:
        for rounds in self._irregular:
            rounds.say()
        if self._pool:
            self._pool.end()
        self._starting.end()
        if self._capture:
            self._capture.end()
        for model in reversed(self.models):
            model.close()

    @property
    def failed(self) -> bool:
        """Whether a model could not be loaded."""
        return any(model.failed for model in self.models)

    @property
    def broken(self) -> bool:
        """Whether messages among ranks that work together may be under way for ever."""
        return bool(self._pool and self._pool.broken) or any(m.broken for m in self.models)

    def summary(self) -> str:
        """Summarize in one line what this rank has done."""
        counters = self._lib.counters()
        if len(self.models) == 1:
            stepper, text = self.models[0].stepper, self.models[0].name()
            placed = f"; {stepper.summary()}" if isinstance(stepper, Placer) else ""
            return notices.summary(text, counters) + placed
        batches = ", ".join(f"{model.service.name} {model.batches}" for model in self.models)
        requests = f"{counters['requests']} requests, {counters['errors']} failed"
        assignment = self.models[0].assignment
        kind = "spare" if assignment.spare else "pool, replica" if assignment.pool else "replica"
        text = f"{kind} {self._replica}: {requests}; batches: {batches}"
        return f"{text}; {self._pool.summary()}" if self._pool else text


def _relate(models: Sequence[ServedModel]) -> None:
    """Let models know those of their derivatives."""
    by_name = {model.service.name: model for model in models}
    for model in models:
        if model.service.derivative:
            primal = by_name[model.service.derivative.name]
            model.changes.primal = primal
            primal.changes.versions.derivatives.append(model)


def only(assignment: Assignment, service: ServiceConfig) -> Assignment:
    """Return what the rank does for one service; spares are numbered behind its replicas."""
    replica = assignment.replica + (service.replicas if assignment.spare else 0)
    return assignment._replace(services=(service,), replica=replica)


def refuse(lib: core.Session, name: str, error: Error) -> None:
    """Publish an error as the service, and stay until every simulation rank has left."""
    lib.publish({"name": name, "error_code": int(error.code), "error_text": error.text})
    while True:
        try:
            lib.next_batch(IDLE)
        except ClosedError:
            return
