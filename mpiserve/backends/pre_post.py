"""Run a model between the user's functions `preprocess` and `postprocess`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mpiserve.backends.arrays import checked, dtype_of, zeros
from mpiserve.backends.base import Backend, Steps, arranged, import_object
from mpiserve.backends.outer import OuterBackend
from mpiserve.config.uncertainty import seen
from mpiserve.errors import Code, ModelError
from mpiserve.failure import check_interrupt

if TYPE_CHECKING:
    import numpy as np

    from mpiserve.config import ServiceConfig, TensorConfig


class ProcessedBackend(OuterBackend):
    """Calls `preprocess` before another backend and `postprocess` after it.

    Each function receives one array [rows, ...] per tensor, and returns arrays of as many rows
    in any form that a backend's `run` may return. `model_inputs` and `model_outputs` describe
    the tensors of the model, where they differ from the signature.
    """

    def __init__(self, service: ServiceConfig, *args: Any) -> None:
        super().__init__(service, *args)
        if self._model.native:
            text = (
                f"the backend '{service.backend}' calls no preprocess and postprocess: remove them"
            )
            raise ModelError(Code.EMODEL, text)

    def inner_service(self, service: ServiceConfig) -> ServiceConfig:
        """Return the table of the model, between the functions."""
        return service.of_model()

    @property
    def arithmetic(self) -> Sequence[str]:
        """The dtypes of the model's arithmetic, and of its inputs and outputs."""
        inner = self._model.service
        return [*self._model.arithmetic, *(t.dtype for t in (*inner.inputs, *inner.outputs))]

    def load(self) -> None:
        """Import the functions, and load the model.

        Raises:
            ModelError: If a function cannot be imported or called.
        """
        self._before = self._function("preprocess")
        self._after = self._function("postprocess")
        self._seen = [tensor.name for tensor in seen(self.service)]
        super().load()
        if self._model.steps:
            self.steps = ProcessedSteps(self._model.steps, self._prepared, self._finished)

    def run(self, inputs: tuple[np.ndarray, ...]) -> Any:
        """Run preprocess, the model and postprocess on a batch."""
        rows, model = self._rows_of(inputs), self._informed()
        prepared = self._prepared(inputs)
        if model.service.has_free_dims:
            return self._finished(model.run(prepared), rows)
        room = zeros(model.service.outputs, rows)
        return self._finished(model.run_batch(prepared, room, lambda _: None), rows)

    def _rows_of(self, inputs: tuple[np.ndarray, ...]) -> int | None:
        return None if self.service.rows == "none" else len(inputs[0])

    def _prepared(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        if self._before is None:
            return inputs
        tensors = self._model.service.inputs
        return _fitting(self._before(*inputs), tensors, self._rows_of(inputs), "preprocess, input")

    def _finished(self, results: Any, rows: int | None) -> Any:
        if self._after is None:
            return results
        tensors = self._model.service.outputs
        made = _fitting(results, tensors, rows, "output of the model")
        n = len(tensors) - (len(self.service.outputs) - len(self._seen))
        if n == len(made):
            return self._after(*made)
        # The uncertainty of a row is that of the model's answer.
        return [*arranged(self._after(*made[:n]), self._seen, "outputs"), *made[n:]]

    def tune(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> None:
        """Tune the model, with as many rows."""
        room = zeros(self._model.service.outputs, len(inputs[0]))
        self._model.together = self.together
        self._model.tune(self._prepared(self.given(inputs)), room)

    def writes(self, inputs: tuple[np.ndarray, ...]) -> bool:
        """Return whether the model writes to its inputs, which may be those of preprocess."""
        return self._model.writes(self._prepared(inputs))

    def take_over(self, old: Backend) -> None:
        """Take over the tuning of the model's version before."""
        if isinstance(old, ProcessedBackend):
            self._model.together = self.together
            self._model.take_over(old._model)

    def close(self) -> None:
        """Close the model."""
        super().close()
        self.steps = None

    def _function(self, key: str) -> Callable[..., Any] | None:
        spec = getattr(self.service, key)
        if spec is None:
            return None
        function = import_object(spec, self.service.folder)
        if not callable(function):
            raise ModelError(Code.EMODEL, f"'{spec}' is not callable")
        return function


class ProcessedSteps(Steps):
    """Calls the functions for each request of a model that accepts requests one by one."""

    def __init__(
        self,
        steps: Steps,
        before: Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]],
        after: Callable[[Any, int], Any],
    ) -> None:
        self._steps = steps
        self._before = before
        self._after = after
        self._rows: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether the model is busy."""
        return self._steps.busy

    @property
    def room(self) -> bool:
        """Whether the model has room."""
        return self._steps.room

    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        """Preprocess a request and begin it."""
        self._steps.begin(key, client, self._before(inputs))
        self._rows[key] = len(inputs[0])

    def step(self) -> dict[int, Any]:
        """Step the model, and postprocess the results of requests that have ended."""
        return {key: self._finish(key, result) for key, result in self._steps.step().items()}

    def drop(self, key: int) -> None:
        """Drop a request."""
        self._rows.pop(key, None)
        self._steps.drop(key)

    def __getstate__(self) -> dict[str, Any]:
        """Return what `take_over` reads, for a version in another process."""
        return {"_steps": self._steps}

    def take_over(self, old: Steps) -> None:
        """Take over the state of requests that clients may continue."""
        if isinstance(old, ProcessedSteps):
            self._steps.take_over(old._steps)

    def _finish(self, key: int, result: Any) -> Any:
        rows = self._rows.pop(key, None)
        if rows is None or isinstance(result, BaseException):
            return result
        try:
            return self._after(result, rows)
        except BaseException as error:
            check_interrupt()
            return error


def _fitting(
    result: Any, tensors: Sequence[TensorConfig], rows: int | None, what: str
) -> tuple[np.ndarray, ...]:
    """Return arrays in the order of their tensors, checked."""
    arrays = arranged(result, [tensor.name for tensor in tensors], f"{what}s")
    return tuple(
        checked(array, tensor, dtype_of(tensor), rows, what)
        for array, tensor in zip(arrays, tensors, strict=True)
    )
