"""Run models whose tensors have no rows: where others get a batch, they get one request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiserve.backends.arrays import checked, dtype_of
from mpiserve.backends.base import Backend, Native, ordered
from mpiserve.backends.outer import OuterBackend
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import numpy as np

Arrays = tuple["np.ndarray", ...]


class WholeBackend(OuterBackend):
    """Gives another backend the one row of each batch, as an array without a row dimension.

    All else of mpiserve handles such a request as a batch of one row.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._model.together = True

    def load(self) -> None:
        """Load the model.

        Raises:
            ModelError: If it takes requests one by one, in steps.
        """
        super().load()
        if self._model.steps:
            text = "a model that works in steps takes rows: remove rows = 'none'"
            raise ModelError(Code.EMODEL, text)

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Run the model on a request."""
        return self._finished(self._informed().run(_rows_away(inputs)))

    def run_batch(
        self, inputs: Arrays, outputs: Arrays, done: Callable[[int], None]
    ) -> Arrays | list[np.ndarray]:
        """Run the model on a request, which may write to the outputs."""
        room = _rows_away(outputs)
        result = self._informed().run_batch(_rows_away(inputs), room, lambda _: None)
        return outputs if result is room else self._finished(result)

    def _informed(self) -> Backend:
        if self.wants_clients:
            self._model.clients = self.clients
        return self._model

    def _finished(self, result: Any) -> list[np.ndarray]:
        tensors = self.service.outputs
        return [
            checked(array, tensor, dtype_of(tensor), None)[None]
            for array, tensor in zip(ordered(result, self.service), tensors, strict=True)
        ]

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


def _rows_away(arrays: Arrays) -> Arrays:
    """View arrays of one row without the dimension of rows."""
    return tuple(array.reshape(array.shape[1:]) for array in arrays)
