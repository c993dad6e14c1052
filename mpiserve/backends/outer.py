"""A backend around another one, which has the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig

Create = Callable[["ServiceConfig", "MPI.Comm | None", int], Backend]


class OuterBackend(Backend):
    """Passes what it does not do itself to an inner backend.

    Args:
        service: The service's table.
        create: Makes a backend, from the same arguments as a backend.
        comm: The ranks of this replica.
        local_rank: Position among the inference ranks of this node.
    """

    def __init__(
        self,
        service: ServiceConfig,
        create: Create,
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
    ) -> None:
        super().__init__(service, comm, local_rank)
        self._model = create(self.inner_service(service), comm, local_rank)
        self._model.copies = True  # the arrays of each batch are new, or new views

    def inner_service(self, service: ServiceConfig) -> ServiceConfig:
        """Return the table of the inner backend."""
        return service

    @property
    def engine(self) -> str:
        """The engine of the model."""
        return self._model.engine

    @property
    def arithmetic(self) -> Sequence[str]:
        """The dtypes of the model's arithmetic."""
        return self._model.arithmetic

    @property
    def tune_result(self) -> Any:
        """What the model has measured."""
        return self._model.tune_result

    @tune_result.setter
    def tune_result(self, result: Any) -> None:
        self._model.tune_result = result

    def load(self) -> None:
        """Load the model."""
        self._model.load()
        self.wants_clients = self._model.wants_clients

    def _informed(self) -> Backend:
        """Return the model, which knows what serving has said of the next batch."""
        self._model.together = self.together
        if self.wants_clients:
            self._model.clients = self.clients
        return self._model

    def supervise(self) -> None:
        """Let the model look after itself."""
        self._model.supervise()
        self.unavailable = self._model.unavailable

    def serving(self) -> AbstractContextManager[Any]:
        """Enter the model's context of serving."""
        return self._model.serving()

    def warmed(self) -> None:
        """Tell the model that warm-up is over."""
        self._model.warmed()

    def close(self) -> None:
        """Close the model."""
        self._model.close()
