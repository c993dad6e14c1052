"""A model between two functions of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mpiserve.backends.arrays import checked, dtype_of, zeros
from mpiserve.backends.base import Backend, arranged, import_object
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig, TensorConfig


class ProcessedBackend(Backend):
    """Calls `preprocess` before another backend and `postprocess` after it.

    Each gets one array [rows, ...] per tensor, and returns what a backend's `run` may:
    arrays of as many rows. What goes to the model is `model_inputs`, and what comes
    from it `model_outputs`, where they differ from the signature.
    """

    def __init__(
        self,
        service: ServiceConfig,
        create: Callable[[ServiceConfig, MPI.Comm | None, int], Backend],
        comm: MPI.Comm | None = None,
        local_rank: int = 0,
    ) -> None:
        super().__init__(service, comm, local_rank)
        self._model = create(service.of_model(), comm, local_rank)
        if self._model.native:
            text = f"the backend '{service.backend}' answers in C, without functions"
            raise ModelError(Code.EMODEL, text)

    @property
    def engine(self) -> str:
        """That of the model."""
        return self._model.engine

    def load(self) -> None:
        """Import the functions, and load the model.

        Raises:
            ModelError: If a function cannot be imported or called.
        """
        self._before = self._function("preprocess")
        self._after = self._function("postprocess")
        self._model.load()

    def run(self, inputs: tuple[np.ndarray, ...]) -> Any:
        """Run all three on a batch."""
        rows, inner = len(inputs[0]), self._model.service
        if self._before:
            inputs = _fitting(self._before(*inputs), inner.inputs, rows, "preprocess, input")
        room = zeros(inner.outputs, rows)
        results: Any = self._model.run_batch(inputs, room, lambda _: None)
        if self._after is None:
            return results
        return self._after(*_fitting(results, inner.outputs, rows, "output of the model"))

    def serving(self) -> AbstractContextManager[Any]:
        """Enclose the time of serving as the model wants it."""
        return self._model.serving()

    def tune(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> None:
        """Let the model find out what suits it, with as many rows."""
        inner, rows = self._model.service, len(inputs[0])
        self._model.tune(zeros(inner.inputs, rows), zeros(inner.outputs, rows))

    def close(self) -> None:
        """Let the model go."""
        self._model.close()

    def _function(self, key: str) -> Callable[..., Any] | None:
        spec = getattr(self.service, key)
        if spec is None:
            return None
        function = import_object(spec, self.service.folder)
        if not callable(function):
            raise ModelError(Code.EMODEL, f"'{spec}' is not callable")
        return function


def _fitting(
    result: Any, tensors: Sequence[TensorConfig], rows: int, what: str
) -> tuple[np.ndarray, ...]:
    """Bring arrays into the order of tensors that they must fit."""
    arrays = arranged(result, [tensor.name for tensor in tensors], f"{what}s")
    return tuple(
        checked(array, tensor, dtype_of(tensor), rows, what)
        for array, tensor in zip(arrays, tensors, strict=True)
    )
