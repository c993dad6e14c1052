"""Run models whose tensors have no rows: where others get a batch, they get one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mpiserve.backends.arrays import checked, dtype_of
from mpiserve.backends.base import Backend, Native, ordered
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig

Arrays = tuple["np.ndarray", ...]


class WholeBackend(Backend):
    """Gives another backend the one row of each batch, as an array without a row dimension.

    All else of mpiserve handles such a request as a batch of one row.
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
        self._model.together = True
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
            text = "a model that works in steps takes rows: remove rows = 'none'"
            raise ModelError(Code.EMODEL, text)

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Run the model on a request."""
        return self._finished(self._given_clients().run(_rows_away(inputs)))

    def run_batch(
        self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]
    ) -> Arrays | list[np.ndarray]:
        """Run the model on a request, which may write to the outputs."""
        room = _rows_away(outputs)
        result = self._given_clients().run_batch(_rows_away(inputs), room, lambda _: None)
        return outputs if result is room else self._finished(result)

    def _given_clients(self) -> Backend:
        if self.wants_clients:
            self._model.clients = self.clients
        return self._model

    def _finished(self, result: Any) -> list[np.ndarray]:
        tensors = self.service.outputs
        return [
            checked(array, tensor, dtype_of(tensor), None)[None]
            for array, tensor in zip(ordered(result, self.service), tensors, strict=True)
        ]

    def supervise(self) -> None:
        """Let the model look after itself."""
        self._model.supervise()
        self.unavailable = self._model.unavailable

    def serving(self) -> AbstractContextManager[Any]:
        """Enter the model's context of serving."""
        return self._model.serving()

    def writes(self, inputs: Arrays) -> bool:
        """Return whether the model writes to its inputs."""
        return self._model.writes(_rows_away(inputs))

    def compiled(self, build: bool) -> Native | None:
        """Return the model's engine in C, which has no row dimension either."""
        return self._model.compiled(build)

    def take_over(self, old: Backend) -> None:
        """Take over the tuning of the model's version before."""
        if isinstance(old, WholeBackend):
            self._model.take_over(old._model)

    def warmed(self) -> None:
        """Tell the model that warm-up is over."""
        self._model.warmed()

    def close(self) -> None:
        """Close the model."""
        self._model.close()


def _rows_away(arrays: Arrays) -> Arrays:
    """View arrays of one row without the dimension of rows."""
    return tuple(array.reshape(array.shape[1:]) for array in arrays)
