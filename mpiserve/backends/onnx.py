"""The backend `onnx`: run ONNX models with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends import file_kinds
from mpiserve.backends.base import Backend, check_options
from mpiserve.config import TensorConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import onnxruntime

DYNAMIC = "torch.onnx.export(module, (x,), path, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


class OnnxBackend(Backend):
    """Runs an .onnx file.

    Inputs and outputs of the signature are those of the model, by name; outputs that the
    signature leaves out are not computed. Options: `providers`, a list of execution
    providers, by default CPUExecutionProvider, and `provider_options`, a table with a table
    for each provider.
    """

    known_options = ("providers", "provider_options")
    _session: onnxruntime.InferenceSession

    @property
    def engine(self) -> str:
        """The class of the session, by its public name."""
        return "onnxruntime.InferenceSession"

    def load(self) -> None:
        """Load the file and compare it with the signature.

        Raises:
            ModelError: If the file is missing, is not a model, or does not fit the signature.
        """
        check_options(self.service, self.known_options)
        try:
            import onnxruntime
        except ModuleNotFoundError:
            text = "backend 'onnx' needs onnxruntime: pip install 'mpiserve[onnx]'"
            raise ModelError(Code.EMODEL, text) from None
        path = self.service.folder / (self.service.model or "")
        if not path.is_file():
            raise ModelError(Code.EMODEL, f"{path}: no such file")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.service.threads
        settings.inter_op_num_threads = 1
        # Without this, its threads spin until the next call, on cores that the simulation needs.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = self._providers(onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(path, settings, providers=providers)
        except Exception as error:  # the class depends on the reason
            if what := file_kinds.describe(path):
                raise ModelError(Code.EMODEL, f"{path.name} is {what}") from None
            text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
            text = f"{path.name}: onnxruntime cannot load it ({text[:200]})"
            raise ModelError(Code.EMODEL, text) from error
        self._check("input", self.service.inputs, self._session.get_inputs())
        self._check("output", self.service.outputs, self._session.get_outputs())
        self._inputs = [tensor.name for tensor in self.service.inputs]
        self._outputs = [tensor.name for tensor in self.service.outputs]

    def run(self, inputs: tuple[np.ndarray, ...]) -> list[Any]:
        """Run the model on one batch."""
        return self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True)))

    def run_batch(
        self,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        done: Callable[[int], None],
    ) -> Any:
        """Run the model with results in `outputs`; onnxruntime refuses shapes that do not fit."""
        binding = self._session.io_binding()
        for name, array in zip(self._inputs, inputs, strict=True):
            binding.bind_cpu_input(name, array)
        for name, array in zip(self._outputs, outputs, strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return outputs

    def close(self) -> None:
        """Free the session."""
        self.__dict__.pop("_session", None)

    def _providers(self, available: list[str]) -> list[Any]:
        key = f"service.{self.service.name}.options"
        wanted = self.service.options.get("providers", ["CPUExecutionProvider"])
        settings = self.service.options.get("provider_options", {})
        for name in [*wanted, *settings]:
            # onnxruntime would fall back to the CPU with a warning.
            if name not in available:
                text = f"{key}.providers: no '{name}' here; use one of {', '.join(available)}"
                raise ArgumentError(Code.EARG, text)
        return [(name, settings.get(name, {})) for name in wanted]

    def _check(self, side: str, mine: tuple[TensorConfig, ...], theirs: list[Any]) -> None:
        known = {tensor.name: tensor for tensor in theirs}
        names = [tensor.name for tensor in mine]
        for name in names:
            if name not in known:
                text = f"the model has no {side} '{name}'; it has {', '.join(known)}"
                raise ModelError(Code.EMODEL, text)
        missing = [name for name in known if name not in names]
        if side == "input" and missing:
            raise ModelError(Code.EMODEL, f"the model also needs the input '{missing[0]}'")
        for tensor in mine:
            _compare(side, tensor, known[tensor.name])


def _compare(side: str, mine: TensorConfig, model: Any) -> None:
    """Compare a tensor of the signature with the model's, whose free dimensions are not numbers."""
    dtype = DTYPES.get(model.type, model.type)
    shape = [length if isinstance(length, int) else -1 for length in model.shape]
    fits = len(shape) == len(mine.shape) and all(
        theirs in (-1, length) for theirs, length in zip(shape, mine.shape, strict=True)
    )
    if dtype == mine.dtype and fits:
        return
    expected = f"the signature says {mine.dtype} {list(mine.shape)}"
    text = f"{side} '{mine.name}': the model has {dtype} {shape}, {expected}"
    if shape and shape[0] > 0 and shape[1:] == list(mine.shape[1:]):
        text += f". It was exported for only {shape[0]} rows; export it with free rows: {DYNAMIC}"
    elif fits:
        text += "; the backend 'onnx' converts nothing: preprocess and postprocess can"
    raise ModelError(Code.EMODEL, text)
