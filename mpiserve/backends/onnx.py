"""The backend `onnx`: run ONNX models with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.backends import file_kinds
from mpiserve.backends.arrays import cast, dtype_of
from mpiserve.backends.base import Backend, check_options
from mpiserve.config import TensorConfig
from mpiserve.config.tables import COMPLEX_DTYPES, MODEL_DTYPES
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import onnxruntime

Arrays = tuple[np.ndarray, ...]
MAX_KNOWN = 256  # batches whose bindings are kept
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
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
}


class OnnxBackend(Backend):
    """Runs an .onnx file.

    Inputs and outputs of the signature are those of the model, by name; outputs that the
    signature leaves out are not computed. With `convert = true` at a floating tensor, the
    dtype of the model may be another. Options: `providers`, a list of execution
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
        for tensor in (*self.service.inputs, *self.service.outputs):
            if tensor.dtype in COMPLEX_DTYPES:
                text = f"'{tensor.name}' is {tensor.dtype}, and onnxruntime has no complex tensors"
                raise ModelError(Code.EMODEL, f"{text}: give both parts as a dimension of 2")
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
        self._given = self._check("input", self.service.inputs, self._session.get_inputs())
        self._made = self._check("output", self.service.outputs, self._session.get_outputs())
        self._inputs = [tensor.name for tensor in self.service.inputs]
        self._outputs = [tensor.name for tensor in self.service.outputs]
        self._known: dict[int, tuple[Arrays, Arrays, Any]] = {}

    def run(self, inputs: tuple[np.ndarray, ...]) -> list[Any]:
        """Run the model on one batch."""
        arrays = dict(zip(self._inputs, self._converted(inputs), strict=True))
        results = list(self._session.run(self._outputs, arrays))
        for i in self._made:
            result, dtype = results[i], dtype_of(self.service.outputs[i])
            results[i] = np.empty(result.shape, dtype)
            cast(result, results[i], f"output '{self._outputs[i]}'")
        return results

    def run_batch(
        self,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        done: Callable[[int], None],
    ) -> Any:
        """Run the model with results in `outputs`; onnxruntime refuses shapes that do not fit."""
        if self._given or self._made:
            return self._run_converted(inputs, outputs)
        self._session.run_with_iobinding(self._bound(inputs, outputs))
        return outputs

    def _run_converted(self, inputs: Arrays, outputs: Arrays) -> Arrays:
        results = list(outputs)
        for i, dtype in self._made.items():
            results[i] = np.empty(outputs[i].shape, dtype)
        given = self._converted(inputs)
        self._session.run_with_iobinding(self._bind(given, results))
        for i in self._made:
            cast(results[i], outputs[i], f"output '{self._outputs[i]}'")
        return outputs

    def _bound(self, inputs: Arrays, outputs: Arrays) -> Any:
        """Bind the memory of a batch, cached: the broker reuses the arrays of the same rows."""
        if self.copies:
            return self._bind(inputs, outputs)
        known = self._known.get(id(inputs))
        if known is None or known[0] is not inputs or known[1] is not outputs:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = inputs, outputs, self._bind(inputs, outputs)
            if not inputs[0].flags.owndata:  # only views of the broker's memory are reused
                self._known[id(inputs)] = known
        return known[2]

    def _bind(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Any:
        """Bind arrays by their addresses: nothing is copied."""
        binding = self._session.io_binding()
        for bind, names, arrays in (
            (binding.bind_input, self._inputs, inputs),
            (binding.bind_output, self._outputs, outputs),
        ):
            for name, array in zip(names, arrays, strict=True):
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def close(self) -> None:
        """Free the session."""
        self._known = {}
        self.__dict__.pop("_session", None)

    def _converted(self, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Return inputs in the dtypes of the model."""
        arrays = list(inputs)
        for i, dtype in self._given.items():
            arrays[i] = np.empty(inputs[i].shape, dtype)
            cast(inputs[i], arrays[i], f"input '{self._inputs[i]}'")
        return arrays

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

    def _check(
        self, side: str, mine: tuple[TensorConfig, ...], theirs: list[Any]
    ) -> dict[int, np.dtype]:
        """Compare a side with the model's; return the model's dtypes of tensors to convert."""
        known = {tensor.name: tensor for tensor in theirs}
        names = [tensor.name for tensor in mine]
        for name in names:
            if name not in known:
                text = f"the model has no {side} '{name}'; it has {', '.join(known)}"
                raise ModelError(Code.EMODEL, text)
        missing = [name for name in known if name not in names]
        if side == "input" and missing:
            raise ModelError(Code.EMODEL, f"the model also needs the input '{missing[0]}'")
        found = [_compare(side, tensor, known[tensor.name]) for tensor in mine]
        return {i: dtype for i, dtype in enumerate(found) if dtype is not None}


def _compare(side: str, mine: TensorConfig, model: Any) -> np.dtype | None:
    """Compare a tensor of the signature with the model's, whose free dimensions are not numbers.

    Returns:
        The model's dtype if it is another and the tensor is to be converted.
    """
    dtype = DTYPES.get(model.type, model.type)
    shape = [length if isinstance(length, int) else -1 for length in model.shape]
    fits = len(shape) == len(mine.shape) and all(
        theirs in (-1, length) for theirs, length in zip(shape, mine.shape, strict=True)
    )
    if dtype == mine.dtype and fits:
        return None
    # onnxruntime makes no arrays of bfloat16 of ml_dtypes, nor takes them.
    floats = dtype in MODEL_DTYPES and dtype != "bfloat16" and mine.dtype in MODEL_DTYPES
    if fits and floats and mine.convert:
        return dtype_of(mine.model_copy(update={"dtype": dtype}))
    expected = f"the signature says {mine.dtype} {list(mine.shape)}"
    text = f"{side} '{mine.name}': the model has {dtype} {shape}, {expected}"
    if shape and shape[0] > 0 and shape[1:] == list(mine.shape[1:]):
        text += f". It was exported for only {shape[0]} rows; export it with free rows: {DYNAMIC}"
    elif fits and floats:
        text += "; set convert = true at the tensor"
    elif fits:
        text += "; the backend 'onnx' converts only floats: preprocess and postprocess can more"
    raise ModelError(Code.EMODEL, text)
