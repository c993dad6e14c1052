"""torch modules: from a factory, a TorchScript file or an exported program."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mpiserve.backends import language
from mpiserve.backends.base import Backend, check_options, full_name, import_object, ordered
from mpiserve.backends.generate import Generator
from mpiserve.config import OBJECT, ServiceConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch


logger = logging.getLogger("mpiserve")

CHUNKS = (128, 256, 512, 1024, 2048, 4096, 8192)
TUNE_ROUNDS = 5
TUNE_SECONDS = 2.0  # a model that is slower is not measured so often
TUNE_GAIN = 0.97  # of the time of all rows at once: a chunk must be worth it
MAX_KNOWN = 256  # batches whose views are kept
_NOTHING = nullcontext()


class TorchBackend(Backend):
    """Runs an nn.Module in inference mode.

    `model` is "module:callable" giving the module, a .pt2 file of torch.export, or
    a TorchScript file. Options: `arguments`, a table of keyword arguments of the
    callable; `weights`, a safetensors file that is loaded into its module; and `compile`,
    which is true, a mode of `torch.compile`, or a table of its arguments.
    """

    known_options: tuple[str, ...] = ("arguments", "weights", "compile")
    engine_options: tuple[str, ...] = ()  # of these, what a task's model takes too
    module: Any
    _engine = ""

    @property
    def engine(self) -> str:
        """The class of the module that is called."""
        return self._engine or super().engine

    def load(self) -> None:
        """Load the module and bring it to the device, dtype and mode of serving.

        Raises:
            ModelError: If the model is not of a kind that torch can run.
        """
        import torch

        if self.service.task:
            language.check(self.service, self.engine_options)
        else:
            check_options(self.service, self.known_options)
        # The model reads the clients' memory, which numpy knows to be not for writing.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.set_num_threads(self.service.threads)
        self.device = choose_device(self.local_rank)
        self.dtype: torch.dtype = getattr(torch, self.service.dtype)
        self._torch = torch
        self._known: dict[int, tuple[tuple[np.ndarray, ...], list[torch.Tensor]]] = {}
        self._wanted = [getattr(torch, output.dtype) for output in self.service.outputs]
        inputs = [getattr(torch, tensor.dtype) for tensor in self.service.inputs]
        self._as_they_are = self.device.type == "cpu" and all(
            dtype == self.dtype or not dtype.is_floating_point for dtype in inputs
        )
        self.chunk_rows = self.service.chunk_rows
        compile_arguments = self._compile_arguments()
        module = self.read()
        self.module = self.prepare(module)
        self._engine = full_name(type(self.module))
        if compile_arguments is not None:
            self.compile(compile_arguments)
        if self.service.task:
            self.module = self._task(module)
            with self._inference():
                self.module.warm()

    def read(self) -> torch.nn.Module:
        """Get the module, on the CPU."""
        return load_module(self.service)

    def prepare(self, module: torch.nn.Module) -> Any:
        """Make a loaded module ready to be called."""
        return set_eval(module).to(device=self.device, dtype=self.dtype)

    def compile(self, arguments: dict[str, Any]) -> None:
        """Let the module be compiled when it is first called."""
        self.module = compiled(self.service, self.module, arguments)

    def _task(self, module: torch.nn.Module) -> language.Task:
        parts = (self.service, module, self.module, self.service.tensor_parallel)
        if self.service.task == "embed":
            return language.Embedder(*parts)
        self.steps = Generator(*parts)
        return self.steps

    def run(self, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Call the module once, on tensors that view the batch."""
        with self._inference():
            return [self._array(tensor) for tensor in self._call(self._views(inputs))]

    def run_batch(
        self,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        done: Callable[[int], None],
    ) -> Any:
        """Call the module, on pieces that suit the caches, and put the results in place."""
        rows, chunk = len(inputs[0]), self.chunk_rows
        with self._inference():
            tensors, targets = self._views(inputs), self._views(outputs)
            if rows <= chunk or not chunk or self.together:
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
        return self._torch.inference_mode()

    def tune(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> None:
        """Measure which number of rows at a time is fastest, unless the service says it."""
        if self.service.chunk_rows or self.service.task or self.device.type != "cpu":
            return
        if self.together:
            return
        rows = len(inputs[0])
        times = dict.fromkeys([rows, *(chunk for chunk in CHUNKS if chunk < rows)], inf)
        end = perf_counter() + TUNE_SECONDS
        # In rounds: what disturbs the machine for a while disturbs all alike.
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
        """Take the rows at a time: measured beside a model at work they would say little."""
        if isinstance(old, TorchBackend):
            self.chunk_rows = old.chunk_rows

    def close(self) -> None:
        """Free the module's memory."""
        self.__dict__.pop("module", None)
        self.steps = None

    @property
    def arithmetic(self) -> Sequence[str]:
        """That of the service and of the weights; on GPUs perhaps with fewer bits."""
        torch = self._torch
        weights: Any = getattr(self.module, "parameters", tuple)()
        dtypes = {weight.dtype for weight in weights if weight.is_floating_point()} | {self.dtype}
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
        if self.device.type == "cuda" and any(backend.allow_tf32 for backend in backends):
            names.append("float16")  # TF32 has as many bits
        return names

    def writes(self, inputs: tuple[np.ndarray, ...]) -> bool:
        """Ask torch, which counts what is written to a tensor outside of inference mode."""
        torch = self._torch
        with torch.inference_mode(False):
            tensors = [tensor_of(array) for array in inputs]
        before = [tensor._version for tensor in tensors]
        # As it was written: such tensors are another case, for which it would be compiled again.
        with torch.compiler.set_stance("force_eager"), self._inference():
            self._call(tensors)
        return before != [tensor._version for tensor in tensors]

    def _compile_arguments(self) -> dict[str, Any] | None:
        """Arguments of torch.compile, if the service asks for it.

        Raises:
            ArgumentError: If it cannot be had here.
        """
        wanted = self.service.options.get("compile", False)
        if wanted is False:
            return None
        arguments = {"mode": wanted} if isinstance(wanted, str) else wanted
        # Rows vary: else each number of them would be compiled for itself.
        arguments = {"dynamic": True} | ({} if arguments is True else dict(arguments))
        inductor = arguments.get("backend", "inductor") == "inductor"
        if why := _no_compile(self.service, inductor and self.device.type == "cpu"):
            key = f"service.{self.service.name}.options.compile"
            raise ArgumentError(Code.EARG, f"{key}: {why}")
        return arguments

    def _inference(self) -> AbstractContextManager[Any]:
        return _NOTHING if self._torch.is_inference_mode_enabled() else self.serving()

    def _call(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Call the module; give tensors in the order and of the dtypes of the signature."""
        if not self._as_they_are:
            tensors = [self._moved(tensor) for tensor in tensors]
        outputs = ordered(self.module(*tensors), self.service)
        return [
            tensor
            if type(tensor) is self._torch.Tensor and tensor.dtype is wanted
            else self._converted(tensor, wanted)
            for tensor, wanted in zip(outputs, self._wanted, strict=True)
        ]

    def _views(self, arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
        """View arrays as tensors. The broker gives the same arrays for the same rows again."""
        if self.copies:
            return [tensor_of(array) for array in arrays]
        known = self._known.get(id(arrays))
        if known is None or known[0] is not arrays:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = (arrays, [tensor_of(array) for array in arrays])
            if not arrays[0].flags.owndata:  # the broker's memory: no other comes again
                self._known[id(arrays)] = known
        return known[1]

    def _array(self, tensor: torch.Tensor) -> np.ndarray:
        """View a result as an array, after a copy only if it is elsewhere or strided."""
        if tensor.requires_grad or not (tensor.is_cpu and tensor.is_contiguous()):
            tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype is not self._torch.bfloat16:
            return tensor.numpy()
        from ml_dtypes import bfloat16

        return tensor.view(self._torch.int16).numpy().view(bfloat16)

    def _put(self, results: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
        """Copy results to their places, if they are what the signature says."""
        for i, target in enumerate(targets):
            result = results[i]
            if result.shape != target.shape or result.dtype is not target.dtype:
                name = self.service.outputs[i].name
                text = f"output '{name}': expected {short(target)}, got {short(result)}"
                raise ModelError(Code.EMODEL, text)
            target.copy_(result)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        wanted = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=wanted)

    def _converted(self, tensor: Any, wanted: torch.dtype) -> torch.Tensor:
        """What is in the model's own arithmetic is converted; other dtypes must be right."""
        if not isinstance(tensor, self._torch.Tensor):
            text = f"the model must return tensors, not {type(tensor).__name__}"
            raise ModelError(Code.EMODEL, text)
        if tensor.dtype == self.dtype and wanted.is_floating_point:
            return tensor.to(wanted)
        return tensor


def ignore(_rows: int) -> None:
    """Answer nobody: while tuning."""


def short(tensor: torch.Tensor) -> str:
    """Dtype and shape of a tensor, for people."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def choose_device(local_rank: int) -> torch.device:
    """Choose the GPU of a rank, in turn over those of the node; without one, the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _no_compile(service: ServiceConfig, needs_compiler: bool) -> str:
    """Say why torch.compile cannot be had, or ""."""
    compiler = os.environ.get("CXX", "g++")
    if service.tensor_parallel > 1:
        return "not with tensor_parallel"
    if not service.warmup_rows:
        return "needs warmup, when it compiles"
    if needs_compiler and not shutil.which(compiler):
        return f"needs a C++ compiler, and there is no '{compiler}' (CXX names another)"
    return ""


def compiled(service: ServiceConfig, module: torch.nn.Module, arguments: dict[str, Any]) -> Any:
    """Make a module that is compiled when it is first called.

    Raises:
        ArgumentError: If it cannot be, or torch does not know the arguments.
    """
    import torch

    key = f"service.{service.name}.options.compile"
    if isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError(Code.EARG, f"{key}: TorchScript is compiled already")
    # Else workers for compiling are started, which stay.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        return torch.compile(module, **arguments)
    except (TypeError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise ArgumentError(Code.EARG, f"{key}: {text}") from None


def load_module(service: ServiceConfig, weights: bool = True) -> torch.nn.Module:
    """Load a service's model as a module, on the CPU.

    Args:
        service: The service's table.
        weights: Whether to read the weights of a module that is built first.

    Raises:
        ModelError: If it is not of a kind that torch can run.
    """
    model = service.model or ""
    if OBJECT.fullmatch(model):
        return _built(service, model, weights)
    for option in service.options:
        if option in ("arguments", "weights"):
            text = f"service.{service.name}.options.{option}: needs a model 'module:callable'"
            raise ArgumentError(Code.EARG, text)
    return _read(service, service.folder / model)


def _built(service: ServiceConfig, model: str, weights: bool) -> torch.nn.Module:
    import torch

    module = import_object(model, service.folder)(**service.options.get("arguments", {}))
    if not isinstance(module, torch.nn.Module):
        text = f"'{model}' must return a torch.nn.Module, not {type(module).__name__}"
        raise ModelError(Code.EMODEL, text)
    if weights and "weights" in service.options:
        from safetensors.torch import load_file

        module.load_state_dict(load_file(service.folder / service.options["weights"]))
    return module


def _read(service: ServiceConfig, path: Path) -> torch.nn.Module:
    import torch

    if path.is_dir():
        return language.read_directory(service, path)
    if service.task:
        text = f"{path}: no such directory; task '{service.task}' needs one of Hugging Face's"
        raise ModelError(Code.EMODEL, text)
    if not path.is_file():
        raise ModelError(Code.EMODEL, f"{path}: no such file")
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        kinds = "'module:callable', a .pt2 file of torch.export, or a TorchScript file"
        reason = str(error).splitlines()[0]
        text = f"{path.name}: torch cannot load it ({reason}); a model is {kinds}"
        raise ModelError(Code.EMODEL, text) from error


def set_eval(module: torch.nn.Module) -> torch.nn.Module:
    """Leave training mode. An exported program has none, and says so by an exception."""
    try:
        return module.eval()
    except NotImplementedError:
        return module


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """View an array as a tensor; numpy's bfloat16 is one that torch does not know."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)
