"""The backend `torch`: run a torch module on batches."""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend, Native, check_options, full_name, ordered
from mpiserve.backends.language import huggingface
from mpiserve.backends.language.generate import Generator
from mpiserve.backends.torch import ahead_of_time, compiling, dtypes, gradients
from mpiserve.backends.torch.model_files import load_module
from mpiserve.config import TensorConfig
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch


logger = logging.getLogger("mpiserve")

CHUNKS = (128, 256, 512, 1024, 2048, 4096, 8192)
TUNE_ROUNDS = 5
TUNE_SECONDS = 2.0  # slow models are measured less often
TUNE_GAIN = 0.97  # of the time of all rows at once: a chunk must be at least so fast
MAX_KNOWN = 256  # batches whose views are kept
DTYPES = re.compile(r"same dtype|scalar type")  # in error texts of torch
_NOTHING = nullcontext()


class TorchBackend(Backend):
    """Runs an nn.Module in inference mode, or under no_grad if it needs gradients.

    `model` is "module:callable", which returns the module, a .pt2 file of torch.export, or
    a TorchScript file. Options: `arguments`, a table of keyword arguments of the
    callable; `weights`, a safetensors file, or an index of several, that is loaded into its
    module; and `compile`, which is true, a mode of `torch.compile`, or a table of its arguments.

    Attributes:
        dtype: The dtype in which the module computes; None if its parameters have several
            dtypes, or it has no parameters.
        as_they_are: Whether the module takes the inputs without conversion.
    """

    known_options: tuple[str, ...] = ("arguments", "weights", "compile")
    engine_options: tuple[str, ...] = ()  # the known options that apply to tasks too
    module: Any
    dtype: torch.dtype | None = None
    _engine = ""
    _gradients = False  # the model computes gradients while it infers
    _can_be_watched = False
    _watches = 0  # calls still to watch

    @property
    def engine(self) -> str:
        """The class of the module that is called."""
        return self._engine or super().engine

    def load(self) -> None:
        """Load the module, and move it to the device, dtype and mode of serving.

        Raises:
            ModelError: If torch cannot run the model.
        """
        import torch

        if self.service.task:
            huggingface.check(self.service, self.engine_options)
        else:
            check_options(self.service, self.known_options)
        # The inputs are views of the clients' memory, which numpy marks as read-only.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.set_num_threads(self.service.threads)
        if self.service.reproducible:  # of all models of this process: torch knows no other way
            torch.use_deterministic_algorithms(True)
        self.device = choose_device(self.local_rank)
        self._torch = torch
        self._logged: set[str] = set()
        self._known: dict[int, tuple[tuple[np.ndarray, ...], list[torch.Tensor]]] = {}
        self._wanted = [getattr(torch, output.dtype) for output in self.service.outputs]
        self.chunk_rows = self.service.chunk_rows
        arguments = compiling.compile_arguments(self.service, self.device)
        # Tensors that are made in inference mode, as in a reload while serving, stay in it.
        default = torch.get_default_dtype()
        with torch.inference_mode(False):
            module = self.read()
            self._find_dtypes(module)
            self.module = self.prepare(module)
        if torch.get_default_dtype() is not default:
            text = "the model has changed torch's default dtype, for all models of this rank"
            logger.warning("service %s: %s", self.service.name, text)
        self._engine = full_name(type(self.module))
        if arguments is not None:
            self.compile(arguments)
        elif not self.service.task and gradients.can_be_watched(module):
            self._can_be_watched = True
            self.warmed()
        if self.service.task:
            self.module = self._task(module)
            with self._inference():
                self.module.warm()

    def read(self) -> torch.nn.Module:
        """Return the module, on the CPU and in the dtype of the configuration."""
        return load_module(self.service)

    def prepare(self, module: torch.nn.Module) -> Any:
        """Make a loaded module ready to be called."""
        return set_eval(module).to(self.device)

    def compile(self, arguments: dict[str, Any]) -> None:
        """Wrap the module so that its first call compiles it."""
        self.module = compiling.compiled(self.service, self.module, arguments)

    def _task(self, module: torch.nn.Module) -> huggingface.Task:
        parts = (self.service, module, self.module, self.service.tensor_parallel)
        if self.service.task == "embed":
            return huggingface.Embedder(*parts)
        self.steps = Generator(*parts)
        return self.steps

    def run(self, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Call the module once, with tensors that are views of the batch."""
        with self._inference():
            results = self._call(self._views(inputs))
            return [self._array(i, result) for i, result in enumerate(results)]

    def run_batch(
        self,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        done: Callable[[int], None],
    ) -> Any:
        """Call the module on chunks that suit the caches, and copy the results to `outputs`."""
        chunk = self.chunk_rows
        with self._inference():
            tensors, targets = self._views(inputs), self._views(outputs)
            # A tensor without rows may have no dimension; then rows are together.
            if not chunk or self.together or (rows := len(inputs[0])) <= chunk:
                self._put(self._call(tensors), targets)
                return outputs
            for begin in range(0, rows, chunk):
                end = min(begin + chunk, rows)
                results = self._call([tensor[begin:end] for tensor in tensors])
                self._put(results, [target[begin:end] for target in targets])
                done(end)
        return outputs

    def serving(self) -> AbstractContextManager[Any]:
        """Enter inference mode once for all batches."""
        return _NOTHING if self._gradients else self._torch.inference_mode()

    def tune(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> None:
        """Measure which chunk size is fastest, unless the configuration sets chunk_rows."""
        if self.service.chunk_rows or self.service.task or self.device.type != "cpu":
            return
        if self.together or self.service.reproducible:
            return
        rows = len(inputs[0])
        times = dict.fromkeys([rows, *(chunk for chunk in CHUNKS if chunk < rows)], inf)
        end = perf_counter() + TUNE_SECONDS
        # In rounds, so that other load on the machine affects all sizes alike.
        for chunk in TUNE_ROUNDS * [*times]:
            self.chunk_rows, begin = chunk, perf_counter()
            self.run_batch(self.given(inputs), outputs, ignore)
            times[chunk] = min(times[chunk], perf_counter() - begin)
            if perf_counter() > end:
                break
        best = min(times, key=lambda chunk: times[chunk])
        self.chunk_rows = best if times[best] < TUNE_GAIN * times[rows] else 0
        logger.info(
            "service %s runs %s at a time", self.service.name, f"{self.chunk_rows or 'all'} rows"
        )

    def take_over(self, old: Backend) -> None:
        """Take over the chunk size: a measurement beside a busy model would be inaccurate."""
        if isinstance(old, TorchBackend):
            self.chunk_rows = old.chunk_rows

    @property
    def tune_result(self) -> int:
        """The chunk size."""
        return self.chunk_rows

    @tune_result.setter
    def tune_result(self, chunk_rows: int) -> None:
        self.chunk_rows = chunk_rows

    def compiled(self, build: bool) -> Native | None:
        """Compile the module ahead of time, or find it in the cache."""
        return ahead_of_time.compiled(self, build)

    def plain_module(self) -> torch.nn.Module:
        """Return the module that torch can export: without an engine around it."""
        module: torch.nn.Module = self.module
        return module

    def warmed(self) -> None:
        """Watch the first calls again, since these are requests."""
        self._watches = gradients.CALLS if self._can_be_watched else 0

    def close(self) -> None:
        """Free the module's memory."""
        self.__dict__.pop("module", None)
        self.steps = None

    @property
    def arithmetic(self) -> Sequence[str]:
        """The dtypes of the model and its weights; on GPUs also that of TF32, if allowed."""
        torch = self._torch
        weights: Any = getattr(self.module, "parameters", tuple)()
        own = [w.dtype for w in weights if w.is_floating_point() or w.is_complex()]
        names = [str(dtype).removeprefix("torch.") for dtype in {*own, self.dtype}]
        backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
        if self.device.type == "cuda" and any(backend.allow_tf32 for backend in backends):
            names.append("float16")  # TF32 has as many bits of precision
        return names

    def writes(self, inputs: tuple[np.ndarray, ...]) -> bool:
        """Use torch's count of writes to a tensor, which it keeps outside of inference mode."""
        torch = self._torch
        with torch.inference_mode(False):
            tensors = [tensor_of(array) for array in inputs]
        before = [tensor._version for tensor in tensors]
        with compiling.uncompiled(), self._inference():  # it would compile again for such tensors
            self._call(tensors)
        return before != [tensor._version for tensor in tensors]

    def _inference(self) -> AbstractContextManager[Any]:
        if self._gradients:
            return gradients.allowed()
        return _NOTHING if self._torch.is_inference_mode_enabled() else self.serving()

    def _again(self, error: RuntimeError, tensors: list[torch.Tensor]) -> Any:
        """Call a model again that failed because inference mode allows no gradients.

        Raises:
            RuntimeError: The error itself, if it has another cause.
            ModelError: If the error is about dtypes, with those of the inputs.
        """
        if DTYPES.search(str(error)):
            got = [f"'{one.name}' {one.dtype}" for one in self.service.inputs]
            mine = f"in {dtypes.short(self.dtype)}" if self.dtype else "in no dtype of its own"
            text = f"{str(error).splitlines()[0]}; the inputs are {', '.join(got)}, and the model"
            raise ModelError(Code.EMODEL, f"{text} computes {mine}") from error
        needs = not self.service.task and gradients.FAILED.search(str(error))
        if not (needs and self._torch.is_inference_mode_enabled()):
            raise error
        return self._with_gradients(tensors)

    def _watched(self, tensors: list[torch.Tensor]) -> Any:
        """Call the model, and call it again with gradients if it needs them."""
        self._watches -= 1
        if not self._torch.is_inference_mode_enabled():
            return self.module(*tensors)
        result, needed = gradients.watched(lambda: self.module(*tensors))
        return self._with_gradients(tensors) if needed else result

    def _with_gradients(self, tensors: list[torch.Tensor]) -> Any:
        """Call the model with gradients allowed, and allow them from now on."""
        with gradients.allowed():
            result = self.module(*[tensor.clone() for tensor in tensors])
        if not self._gradients:
            self._gradients = True
            self._known.clear()  # these tensors were made in inference mode
            self.as_they_are = False
            text = "the model needs gradients, so it runs under no_grad, not in inference mode"
            logger.info("service %s: %s", self.service.name, text)
        return result

    def _find_dtypes(self, module: torch.nn.Module) -> None:
        """Determine the dtype of the module, and which inputs must be converted."""
        self.dtype = getattr(self._torch, self.service.dtype or "", dtypes.own(module))
        self._targets = [self._target(tensor) for tensor in self.service.inputs]
        inputs = [getattr(self._torch, tensor.dtype) for tensor in self.service.inputs]
        self.as_they_are = self.device.type == "cpu" and self._targets == inputs
        for tensor, theirs, mine in zip(self.service.inputs, inputs, self._targets, strict=True):
            if theirs is not mine:
                what = f"input '{tensor.name}' is {tensor.dtype}, and the model computes in"
                self._log_loss(tensor, f"{what} {dtypes.short(mine)}", theirs, mine)

    def _target(self, tensor: TensorConfig) -> torch.dtype:
        theirs: torch.dtype = getattr(self._torch, tensor.dtype)
        # A task converts its inputs itself.
        fixed = self.service.task or tensor.convert is False
        return theirs if fixed else dtypes.in_arithmetic(theirs, self.dtype)

    def _log_loss(
        self, tensor: TensorConfig, what: str, source: torch.dtype, wanted: torch.dtype
    ) -> None:
        """Log once how much a conversion loses, unless the configuration requests it."""
        follows = self.comm is not None and self.service.tensor_parallel > 1 and self.comm.rank
        if tensor.convert or follows or what in self._logged:
            return
        self._logged.add(what)
        level = logging.WARNING if dtypes.loses(source, wanted) else logging.INFO
        text = f"{what}: it is converted, {dtypes.loss(source, wanted)}"
        hint = "set convert = true at the tensor to silence this"
        logger.log(level, "service %s: %s (%s)", self.service.name, text, hint)

    def _call(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Call the module; return tensors in the order of the signature, of the model's dtypes."""
        if not self.as_they_are:
            tensors = [self._on_device(i, tensor) for i, tensor in enumerate(tensors)]
        try:
            result = self._watched(tensors) if self._watches else self.module(*tensors)
        except RuntimeError as error:
            result = self._again(error, tensors)
        results = ordered(result, self.service)
        for tensor in results:
            if not isinstance(tensor, self._torch.Tensor):
                text = f"the model must return tensors, not {type(tensor).__name__}"
                raise ModelError(Code.EMODEL, text)
        return results

    def _views(self, arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
        """View arrays as tensors, cached: the broker reuses the arrays of the same rows."""
        if self.copies:
            return [tensor_of(array) for array in arrays]
        known = self._known.get(id(arrays))
        if known is None or known[0] is not arrays:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = (arrays, [tensor_of(array) for array in arrays])
            if not arrays[0].flags.owndata:  # only views of the broker's memory are reused
                self._known[id(arrays)] = known
        return known[1]

    def _array(self, i: int, result: torch.Tensor) -> np.ndarray:
        """View a result as an array; copy it first only if it is on a GPU, strided or converted."""
        wanted = self._wanted[i]
        if result.dtype is not wanted and self._may_convert(i, result.dtype):
            result = dtypes.converted(result, wanted, self._output(i))
        return dtypes.as_array(result.contiguous())

    def _put(self, results: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
        """Copy results into the outputs, if they fit the signature."""
        for i, target in enumerate(targets):
            result = results[i]
            same = result.dtype is target.dtype
            if result.shape != target.shape or not (same or self._may_convert(i, result.dtype)):
                raise ModelError(Code.EMODEL, self._refused(i, result, target))
            if same:
                target.copy_(result)
            else:
                dtypes.copy(result, target, self._output(i))

    def _refused(self, i: int, result: torch.Tensor, target: torch.Tensor) -> str:
        output = self.service.outputs[i]
        text = f"output '{output.name}': expected {short(target)}, got {short(result)}"
        same_kind = dtypes.same_kind(result.dtype, target.dtype)
        if result.dtype is target.dtype or not same_kind:
            return text
        return f"{text}; set its dtype, or convert = true there, which loses digits"

    def _on_device(self, i: int, tensor: torch.Tensor) -> torch.Tensor:
        wanted = self._targets[i]
        if tensor.dtype is not wanted:
            tensor = dtypes.converted(tensor, wanted, f"input '{self.service.inputs[i].name}'")
        # A new tensor for each call: backward() would add to the gradients of the last call.
        return tensor.detach().to(self.device)

    def _output(self, i: int) -> str:
        return f"output '{self.service.outputs[i].name}'"

    def _may_convert(self, i: int, mine: torch.dtype) -> bool:
        """By default, a conversion may lose digits only of the model's own dtype. Log it once."""
        output, wanted = self.service.outputs[i], self._wanted[i]
        if not dtypes.same_kind(mine, wanted):
            return False
        allowed = output.convert
        if allowed is None:
            allowed = dtypes.arithmetic(mine) is self.dtype or not dtypes.loses(mine, wanted)
        if allowed:
            what = f"{self._output(i)} is {output.dtype}, and the model gives"
            self._log_loss(output, f"{what} {dtypes.short(mine)}", mine, wanted)
        return allowed


def ignore(_rows: int) -> None:
    """Ignore finished rows: tuning has no clients."""


def short(tensor: torch.Tensor) -> str:
    """Return the dtype and shape of a tensor, for texts."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def choose_device(local_rank: int) -> torch.device:
    """Choose the GPU of a rank, round robin over those of the node; without any, the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def set_eval(module: torch.nn.Module) -> torch.nn.Module:
    """Leave training mode. An exported program has none, and raises an exception."""
    try:
        return module.eval()
    except NotImplementedError:
        return module


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """View an array as a tensor; torch does not know numpy's bfloat16."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)
