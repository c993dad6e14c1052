"""One inference rank at work for several services: a server for each, one library for all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiserve.config.partition import Assignment
from mpiserve.errors import ChangeError, ClosedError
from mpiserve.observe import notices
from mpiserve.serving.served_model import IDLE, Server

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve._lib import core

logger = logging.getLogger("mpiserve")


class Pool:
    """Serves one replica of each service of a pool.

    A model that cannot be loaded fails its own service only.

    Attributes:
        servers: One for each service, in the order of the pool.
    """

    broken = False  # nobody but this rank runs its models

    def __init__(
        self,
        lib: core.Session,
        assignment: Assignment,
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
    ) -> None:
        self.lib = lib
        assignments = [
            Assignment((service,), assignment.replica, 0) for service in assignment.services
        ]
        self.servers = [Server(lib, one, comm, local_rank, i) for i, one in enumerate(assignments)]
        self._batches = [0] * len(assignments)
        self._silence = notices.Silence(lib)

    @property
    def failed(self) -> bool:
        """Whether a model could not be loaded."""
        return any(server.failed for server in self.servers)

    def serve(self, watch: Callable[[], None] | None = None) -> None:
        """Load, announce, and answer until every simulation rank has left; as Server.serve."""
        descriptions = self._prepare()
        with notices.publishing():
            self.lib.publish(*descriptions)
        self._begin()
        for server in self.servers:
            server.enter()
        while self.step():
            if watch:
                watch()
        logger.info("%s", self.summary())
        self._end()
        for server in reversed(self.servers):
            server.close()

    def _prepare(self) -> list[dict[str, Any]]:
        """Load the models; give what is to be published of each service."""
        return [server.prepare() for server in self.servers]

    def _begin(self) -> None:
        """Do what comes between announcing and answering."""

    def _end(self) -> None:
        """Do what comes when every simulation rank has left."""

    def step(self, timeout: float = IDLE) -> bool:
        """Answer one batch of one service, or wait for one in vain; as Server.step."""
        batch, busy = None, False
        try:
            busy = any(server.busy for server in self.servers)
            batch = self.lib.next_batch(0.0 if busy else timeout)
        except ClosedError:
            return False
        except ChangeError:
            order = self.lib.change_get()
            self.servers[order[0]].change(order)
        if batch is not None:
            self._answer(batch)
        elif not busy:
            self._silence.look()
        self._go_on()
        return True

    def _answer(self, batch: core.Batch) -> None:
        self._batches[batch.service] += 1
        self.servers[batch.service].answer(batch)

    def _go_on(self) -> None:
        for server in self.servers:
            server.go_on()
            server.look()

    def summary(self) -> str:
        """Say in one line what this rank has done."""
        count = self.lib.counters()
        each = ", ".join(
            f"{server.service.name} {batches}"
            for server, batches in zip(self.servers, self._batches, strict=True)
        )
        replica = self.servers[0].assignment.replica
        requests = f"{count['requests']} requests, {count['errors']} failed"
        return f"pool, replica {replica}: {requests}; batches: {each}"
