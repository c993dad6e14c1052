"""Load the versions of a service in child processes."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends.base import Backend
from mpiserve.backends.torch.peers import Meeting, host_of, listen
from mpiserve.errors import Code, ModelError
from mpiserve.failure import check_interrupt, describe
from mpiserve.mpi.requests import agree, complete
from mpiserve.serving.isolation.isolated import Isolated
from mpiserve.serving.isolation.part import IsolatedPart
from mpiserve.serving.isolation.process import LostError
from mpiserve.serving.isolation.restarts import Restarts
from mpiserve.serving.isolation.server_link import the_server
from mpiserve.serving.loading import LOADING, FailedTogetherError, Loader
from mpiserve.serving.placement.placed_backend import PlacedLoader, local_table

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve._lib import core
    from mpiserve.config import ServiceConfig

logger = logging.getLogger("mpiserve")

LIBRARIES = {"torch": ("torch",), "deepspeed": ("torch", "deepspeed")}


class IsolatedLoader:
    """Loads the versions of a service, each in a child of its own.

    Args:
        lib: The session handle of this rank.
        service: The table of the service.
        local_rank: Position among the inference ranks of this node.
        remark: Called with each remark for the user about a model, in one line.
    """

    def __init__(
        self,
        lib: core.Session,
        service: ServiceConfig,
        local_rank: int,
        remark: Callable[[str], None],
    ) -> None:
        self._lib = lib
        self._local_rank = local_rank
        self._remark = remark
        self._newest: Isolated | None = None
        self._abandoned = False
        the_server.load(libraries_of(service), service.threads)
        the_server.start()

    def load(self, service: ServiceConfig, old: Backend | None = None) -> Backend:
        """Load a version and warm it up, beside the version that answers if there is one.

        Raises:
            Error: If it cannot be loaded, with the text of the reason.
        """
        before = (old.tune_result, old.in_c) if isinstance(old, Isolated) else (None, None)
        backend = self._newest = self._made(service, *before)
        try:
            self._load(backend)
        except BaseException:
            check_interrupt()
            backend.close()
            raise
        for text in backend.remarks:
            self._remark(text)
        return backend

    def load_again(self, service: ServiceConfig) -> Backend:
        """Load a version that was loaded before, as often as its process may be started again.

        Raises:
            Error: If it cannot be loaded, or its process is lost too often.
        """
        restarts = Restarts(service.restarts, service.restart_window_s)
        while True:
            try:
                return self.load(service)
            except LostError as error:
                if self._abandoned or not restarts.count(time.monotonic()):
                    raise
                logger.warning("service %s: it is loaded once more: %s", service.name, error.text)

    def abandon(self) -> None:
        """End a load that is under way in another thread: it fails."""
        self._abandoned = True
        if self._newest:
            self._newest.abandon()

    def _made(self, service: ServiceConfig, tuning: Any, in_c: bool | None) -> Isolated:
        return Isolated(self._lib, service, the_server, self._local_rank, tuning, in_c)

    def _load(self, backend: Isolated) -> None:
        backend.load()


class PartLoader(IsolatedLoader):
    """Loads the versions of a service of which each replica has several ranks, in step with them.

    Args:
        comm: The ranks of the replica.
        args: As of IsolatedLoader.
    """

    def __init__(self, comm: MPI.Comm, *args: Any) -> None:
        super().__init__(*args)
        self._comm = comm
        self._host = host_of(comm)

    def _made(self, service: ServiceConfig, tuning: Any, in_c: bool | None) -> Isolated:
        comm, seconds = self._comm, service.peer_timeout_s
        meeting = Meeting(comm.rank, comm.size, self._host, 0, seconds)
        return IsolatedPart(meeting, self._lib, service, the_server, self._local_rank, tuning)

    def _load(self, backend: Isolated) -> None:
        assert isinstance(backend, IsolatedPart)
        lost, wrong = "", ""
        cause: BaseException | None = None
        try:
            backend.starter(*self._port())()
        except LostError as error:
            lost = describe(error)
        except BaseException as error:
            check_interrupt()
            wrong, cause = describe(error), error
        # That another rank is lost is what the others say when one is: it says more itself.
        limit = backend.service.load_timeout_s + LOADING
        if text := agree(self._comm, lost, limit) or agree(self._comm, wrong, limit):
            raise FailedTogetherError(Code.EMODEL, text) from cause

    def _port(self) -> tuple[int, socket.socket | None]:
        """Choose the port at which the children meet, on the head; tell the others."""
        listener = None if self._comm.rank else listen(self._host)
        port = np.array([listener.getsockname()[1] if listener else 0], np.int64)
        if not complete(self._comm.Ibcast(port, root=0), LOADING):
            raise ModelError(Code.EMODEL, f"the first rank did not come within {LOADING:g} s")
        return int(port[0]), listener


def loader_of(
    comm: MPI.Comm | None,
    lib: core.Session,
    service: ServiceConfig,
    local_rank: int,
    remark: Callable[[str], None],
) -> Loader | IsolatedLoader | PlacedLoader:
    """Make the loader of a service on this rank. Collective over the ranks of a replica.

    Args:
        comm: The ranks of the replica.
        lib: The session handle of this rank.
        service: The table of the service.
        local_rank: Position among the inference ranks of this node.
        remark: Called with each remark for the user about a model, in one line.
    """
    if service.remote:
        return PlacedLoader(loader_of(comm, lib, local_table(service), local_rank, remark))
    several = comm is not None and service.tensor_parallel > 1
    if not service.isolated:
        if several and comm and not comm.rank:
            logger.info("service %s: its model runs in the ranks themselves", service.name)
        return Loader(comm, local_rank, remark)
    if several and comm:
        return PartLoader(comm, lib, service, local_rank, remark)
    return IsolatedLoader(lib, service, local_rank, remark)


def libraries_of(service: ServiceConfig) -> tuple[str, ...]:
    """Return the large libraries that a service needs, for children to share."""
    names = LIBRARIES.get(service.backend, ())
    return (*names, "transformers") if names and service.task else names
