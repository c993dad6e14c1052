"""Load a version of a model, in step with the other ranks of its replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from mpiserve import backends
from mpiserve.backends.base import Backend, Native
from mpiserve.errors import CausedError, Code
from mpiserve.failure import check_interrupt, describe
from mpiserve.mpi.requests import agree
from mpiserve.serving import engines
from mpiserve.serving.engines import limit_threads
from mpiserve.serving.warmup import Warmup, examples

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig

LOADING = 600.0  # seconds that ranks of one replica wait for each other to have loaded


class FailedTogetherError(CausedError):
    """A rank of the replica could not load; the cause is this rank's own error, if it has one."""


class Known(NamedTuple):
    """What warm-up has found out about a model: attributes of its backend."""

    together: bool
    copies: bool
    tuning: Any
    native: Native | None


class Loader:
    """Loads the versions of a service.

    Args:
        comm: The ranks of the replica.
        local_rank: Position among the inference ranks of this node.
        remark: Called with each remark for the user about a model, in one line.

    Attributes:
        loaded: When the newest model was loaded, before its warm-up, as time.monotonic tells it.
    """

    def __init__(
        self,
        comm: MPI.Comm | None,
        local_rank: int,
        remark: Callable[[str], None],
    ) -> None:
        self._comm = comm
        self._local_rank = local_rank
        self._remark = remark
        self.loaded = 0.0

    def load(
        self,
        service: ServiceConfig,
        old: Backend | None = None,
        tuning: Any = None,
        in_c: bool | None = None,
    ) -> Backend:
        """Load a version and warm it up, beside the version that answers if there is one.

        Args:
            service: The table of the service for the version.
            old: The version that answers.
            tuning: Its tuning, if it is in another process.
            in_c: Whether an engine in C runs it there; None if there is none.

        Raises:
            Exception: Any exception of the model; on every rank of the replica, if on one.
        """
        limit_threads(service.threads)
        shared = self._comm if service.tensor_parallel > 1 else None
        warmup = self._looked_at(service, shared)
        try:
            warmup.settle(old, tuning, in_c)
        except BaseException:
            _close(warmup.backend)
            raise
        for text in warmup.remarks:
            self._remark(text)
        warmup.backend.warmed()
        return warmup.backend

    def load_again(self, service: ServiceConfig) -> Backend:
        """Load a version that was loaded before."""
        return self.load(service)

    def abandon(self) -> None:
        """Do nothing: a load of this process cannot be ended."""

    def repeat(self, service: ServiceConfig, known: Known) -> Backend:
        """Load a model that was loaded before, in another process.

        Raises:
            Exception: Any exception of the model.
        """
        limit_threads(service.threads)
        backend = backends.create(service, self._comm, self._local_rank)
        try:
            backend.load()
            backend.together, backend.copies = known.together, known.copies
            backend.native = known.native
            if known.tuning is not None:
                backend.tune_result = known.tuning
            shared = self._comm if service.tensor_parallel > 1 else None
            Warmup(backend, service, shared).repeat()
            backend.warmed()
        except BaseException:
            _close(backend)
            raise
        return backend

    def compile(self, service: ServiceConfig, known: Known) -> Native | None:
        """Compile a model that another process serves, and choose what should run it there.

        Raises:
            Exception: Any exception of the model.
        """
        backend = self.repeat(service, known)
        try:
            return engines.choose(backend, service, examples(service), build=True)
        finally:
            _close(backend)

    def _looked_at(self, service: ServiceConfig, shared: MPI.Comm | None) -> Warmup:
        """Load and examine a model, on all ranks or on none."""
        if shared is None:
            return self._make(service, shared)
        warmup, wrong, cause = None, "", None
        try:
            warmup = self._make(service, shared)
        except BaseException as error:
            check_interrupt()
            wrong, cause = describe(error), error
        wrong = agree(shared, wrong, LOADING)
        if warmup and not wrong:
            return warmup
        if warmup:
            _close(warmup.backend)
        raise FailedTogetherError(Code.EMODEL, wrong) from cause

    def _make(self, service: ServiceConfig, shared: MPI.Comm | None) -> Warmup:
        """Load and examine this rank's part; only the model's own calls wait for other ranks."""
        backend = backends.create(service, self._comm, self._local_rank)
        try:
            backend.load()
            self.loaded = time.monotonic()
            warmup = Warmup(backend, service, shared)
            warmup.look()
        except BaseException:
            _close(backend)
            raise
        return warmup


def _close(backend: Backend) -> None:
    with suppress(BaseException):  # of a model that is half loaded
        backend.close()
