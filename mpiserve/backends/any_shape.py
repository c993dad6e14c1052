"""Run models whose tensors have free dimensions: each batch has its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend, Native
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig

Arrays = tuple["np.ndarray", ...]


class AnyShapeBackend(Backend):
    """Has another backend return its results, whose dimensions nobody knows before.

    Engines in C are not told dimensions, so there is none, and nothing is tuned by size.
    """

    def __init__(
        self,
        service: ServiceConfig,
        create: Callable[[ServiceConfig, MPI.Comm | None, int], Backend],
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
    ) -> None:
        super().__init__(service, comm, local_rank)
        self._model = create(service, comm, local_rank)
        self._model.copies = True  # the arrays of each batch are new views

    @property
    def engine(self) -> str:
        """The engine of the model."""
        return self._model.engine

    @property
    def arithmetic(self) -> Sequence[str]:
        """The dtypes of the model's arithmetic."""
        return self._model.arithmetic

    def load(self) -> None:
        """Load the model.

        Raises:
            ModelError: If it takes requests one by one, in steps.
        """
        self._model.load()
        self.wants_clients = self._model.wants_clients
        if self._model.steps:
            text = "a model that works in steps has fixed shapes: remove max_shape"
            raise ModelError(Code.EMODEL, text)

    def run(self, inputs: Arrays) -> Any:
        """Run the model on one batch."""
        self._model.together = self.together
        if self.wants_clients:
            self._model.clients = self.clients
        return self._model.run(inputs)

    def supervise(self) -> None:
        """Let the model look after itself."""
        self._model.supervise()
        self.unavailable = self._model.unavailable

    def serving(self) -> AbstractContextManager[Any]:
        """Enter the model's context of serving."""
        return self._model.serving()

    def writes(self, inputs: Arrays) -> bool:
        """Return whether the model writes to its inputs."""
        return self._model.writes(inputs)

    def compiled(self, build: bool) -> Native | None:
        """Refuse.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            Code.EMODEL, "its tensors have free dimensions, which an engine in C is not told"
        )

    def warmed(self) -> None:
        """Tell the model that warm-up is over."""
        self._model.warmed()

    def close(self) -> None:
        """Close the model."""
        self._model.close()
