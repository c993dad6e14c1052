"""torch modules: from a factory, a TorchScript file or an exported program."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend, check_options, full_name, import_object, ordered
from mpiserve.config import OBJECT, ServiceConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch


class TorchBackend(Backend):
    """Runs an nn.Module in inference mode.

    `model` is "module:callable" giving the module, a .pt2 file of torch.export, or
    a TorchScript file. Options: `arguments`, a table of keyword arguments of the
    callable, and `weights`, a safetensors file that is loaded into its module.
    """

    known_options: tuple[str, ...] = ("arguments", "weights")
    module: Any

    @property
    def engine(self) -> str:
        """The class of the module that is called."""
        return full_name(type(self.module)) if hasattr(self, "module") else super().engine

    def load(self) -> None:
        """Load the module and bring it to the device, dtype and mode of serving.

        Raises:
            ModelError: If the model is not of a kind that torch can run.
        """
        import torch

        check_options(self.service, self.known_options)
        # The model reads the clients' memory, which numpy knows to be not for writing.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.set_num_threads(self.service.threads)
        self.device = choose_device(self.local_rank)
        self.dtype: torch.dtype = getattr(torch, self.service.dtype)
        self.module = self.prepare(load_module(self.service))

    def prepare(self, module: torch.nn.Module) -> Any:
        """Make a loaded module ready to be called."""
        return set_eval(module).to(device=self.device, dtype=self.dtype)

    def run(self, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Call the module on tensors that view the batch."""
        import torch

        with torch.inference_mode():
            result = self.module(*[self._tensor(array) for array in inputs])
            outputs = ordered(result, self.service)
            return [
                self._array(tensor, output.dtype)
                for tensor, output in zip(outputs, self.service.outputs, strict=True)
            ]

    def close(self) -> None:
        """Free the module's memory."""
        self.__dict__.pop("module", None)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = tensor_of(array)
        wanted = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=wanted)

    def _array(self, tensor: torch.Tensor, dtype: str) -> np.ndarray:
        """What is in the model's own arithmetic is converted; other dtypes must be right."""
        import torch

        if not isinstance(tensor, torch.Tensor):
            text = f"the model must return tensors, not {type(tensor).__name__}"
            raise ModelError(Code.EMODEL, text)
        wanted = getattr(torch, dtype)
        if tensor.dtype == self.dtype and wanted.is_floating_point:
            tensor = tensor.to(wanted)
        return array_of(tensor)


def choose_device(local_rank: int) -> torch.device:
    """Choose the GPU of a rank, in turn over those of the node; without one, the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def load_module(service: ServiceConfig) -> torch.nn.Module:
    """Load a service's model as a module, on the CPU.

    Raises:
        ModelError: If it is not of a kind that torch can run.
    """
    model = service.model or ""
    if OBJECT.fullmatch(model):
        return _built(service, model)
    for option in service.options:
        if option in ("arguments", "weights"):
            text = f"service.{service.name}.options.{option}: needs a model 'module:callable'"
            raise ArgumentError(Code.EARG, text)
    return _read(service.folder / model)


def _built(service: ServiceConfig, model: str) -> torch.nn.Module:
    import torch

    module = import_object(model, service.folder)(**service.options.get("arguments", {}))
    if not isinstance(module, torch.nn.Module):
        text = f"'{model}' must return a torch.nn.Module, not {type(module).__name__}"
        raise ModelError(Code.EMODEL, text)
    if "weights" in service.options:
        from safetensors.torch import load_file

        module.load_state_dict(load_file(service.folder / service.options["weights"]))
    return module


def _read(path: Path) -> torch.nn.Module:
    import torch

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


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """View a tensor as an array, after a copy only if it is elsewhere or strided."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    from ml_dtypes import bfloat16

    return tensor.view(torch.int16).numpy().view(bfloat16)
