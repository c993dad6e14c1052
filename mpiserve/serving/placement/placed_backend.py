"""The backend of a service that has a local model and a remote one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend
from mpiserve.backends.remote.api import NotAskedError
from mpiserve.backends.remote.remote_backend import RemoteBackend
from mpiserve.backends.remote.settings import remote_table
from mpiserve.errors import Code, ModelError
from mpiserve.failure import describe
from mpiserve.serving.placement.breaker import CLOSED, HALF_OPEN, Breaker, Question
from mpiserve.serving.placement.policy import Policy

if TYPE_CHECKING:
    from mpiserve.config import ServiceConfig

logger = logging.getLogger("mpiserve")

ASKED = 2.0  # seconds that a server may take to say that it is ready


class Placed(Backend):
    """Holds both models. `Placer` asks one or both of them; as a backend it is the local one.

    Args:
        service: The table of the service.
        local: The local model, which is loaded.

    Attributes:
        local: The local model.
        remote: The remote one.
        policy: Which one answers.
        breaker: Whether the remote one may.
    """

    def __init__(self, service: ServiceConfig, local: Backend) -> None:
        super().__init__(service, local.comm, local.local_rank)
        assert service.remote
        self.local = local
        self.remote = RemoteBackend(remote_table(service))
        self.breaker = Breaker(service.remote.failures, service.remote.open_s)
        self._question = Question(lambda: self.remote.problem(ASKED))
        self._said: set[str] = set()
        self.together, self.copies = local.together, local.copies
        self.wants_clients = local.wants_clients

    @property
    def engine(self) -> str:
        """Both."""
        return f"{self.local.engine} or {self.remote.engine}"

    @property
    def arithmetic(self) -> Sequence[str]:
        """The dtypes of the local model's arithmetic."""
        return self.local.arithmetic

    def load(self) -> None:
        """Look for the remote model. If no server is ready, the local one answers alone.

        Raises:
            ArgumentError: If an option is wrong.
            ModelError: If a server has another model.
        """
        if self.local.steps:
            text = "works in steps, which have no cost by rows; remove the table 'remote'"
            raise ModelError(Code.EMODEL, f"the local model {text}")
        assert self.service.remote
        self.remote.connect(patient=False)
        self.policy = Policy(
            self._placement,
            self.remote.connections,
            self.service.max_batch_rows,
            self.service.remote.probe_s,
        )
        if problem := self.remote.problem(ASKED):
            self.breaker.open(time.monotonic())
            self._say(problem)

    @property
    def _placement(self) -> str:
        """What the configuration says, but rows that belong together are not divided."""
        placement = self.service.placement
        return "auto" if placement == "split" and self.together else placement

    # ---- the local model

    def run_batch(self, inputs: Any, outputs: Any, done: Callable[[int], None]) -> Any:
        """Run the local model."""
        return self._informed().run_batch(inputs, outputs, done)

    def rerun_rows(self, inputs: Any, outputs: Any) -> Any:
        """Run the local model on rows of a batch that has failed."""
        return self._informed().rerun_rows(inputs, outputs)

    def _informed(self) -> Backend:
        if self.wants_clients:
            self.local.clients = self.clients
        return self.local

    def serving(self) -> AbstractContextManager[Any]:
        """Enter the local model's context of serving."""
        return self.local.serving()

    # ---- who can answer

    @property
    def has_local(self) -> bool:
        """Whether the local model can answer."""
        return self.local.availability == "ready"

    @property
    def has_remote(self) -> bool:
        """Whether the remote model can; while that is tried, only if the local one cannot."""
        state = self.breaker.state
        return state == CLOSED or (state == HALF_OPEN and not self.has_local)

    @property
    def availability(self) -> str:
        """Whether one of them answers. Where no other replica does, requests wait for a restart."""
        found = self.local.availability
        waits = self.service.replicas == 1 and found == "restarting"
        return "ready" if self.has_remote or waits else found

    def supervise(self) -> None:
        """Let the local model look after itself, and ask servers that have failed."""
        self.local.elsewhere = self.breaker.state == CLOSED
        self.local.supervise()
        now = time.monotonic()
        if self._question.answered():
            problem = self._question.take()
            self.breaker.told(problem is None, now)
            if self.breaker.state != CLOSED:  # an answer has closed it meanwhile
                self._say(problem)
        elif self.breaker.due(now) and not self._question.open:
            self._question.start()

    def succeed(self) -> None:
        """Note an answer of the remote model."""
        if self.breaker.succeed():
            self._said.clear()
            text = "service %s: the remote model answers again (%s)"
            logger.info(text, self.service.name, self.remote.engine)

    def fail(self, error: BaseException) -> None:
        """Note that the remote model has not answered, or with what is no answer to a request."""
        if not isinstance(error, NotAskedError) and self.breaker.fail(time.monotonic()):
            self._say(describe(error))

    def _say(self, problem: str | None) -> None:
        """Log why the remote model does not answer, once for each reason until it does."""
        if problem and problem not in self._said:
            text = "service %s: the remote model does not answer, the local one does: %s"
            logger.warning(text, self.service.name, problem)
            self._said.add(problem)

    def close(self) -> None:
        """Close both."""
        try:
            self.remote.close()
        finally:
            self.local.close()


class PlacedLoader:
    """Loads the versions of a service that has both models.

    Args:
        loader: Loads the local one: a `Loader` or an `IsolatedLoader`.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.abandon = loader.abandon

    def load(self, service: ServiceConfig, old: Backend | None = None) -> Backend:
        """Load a version of the local model, and look for that of the remote one.

        Raises:
            Exception: Any exception of the model.
        """
        before = old.local if isinstance(old, Placed) else None
        return self._beside(service, self._loader.load(local_table(service), before))

    def load_again(self, service: ServiceConfig) -> Backend:
        """Load a version that was loaded before."""
        return self._beside(service, self._loader.load_again(local_table(service)))

    def _beside(self, service: ServiceConfig, local: Backend) -> Backend:
        placed = Placed(service, local)
        try:
            placed.load()
        except BaseException:
            placed.close()
            raise
        return placed


def local_table(service: ServiceConfig) -> ServiceConfig:
    """Return the table of the local model, whose child keeps an engine in C: Python calls it."""
    isolate = True if service.isolated else service.isolate
    return service.model_copy(update={"remote": None, "placement": "local", "isolate": isolate})
