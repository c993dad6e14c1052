"""Load a module from a callable, a TorchScript file, an exported program or a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends import file_kinds
from mpiserve.backends.base import import_object
from mpiserve.backends.language import huggingface
from mpiserve.backends.torch import dtypes, saved_weights
from mpiserve.config import OBJECT, ServiceConfig
from mpiserve.config.model_file import is_exported, is_torchscript
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

KINDS = "'module:callable', a .pt2 file of torch.export, or a TorchScript file"
DYNAMIC = "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"


def load_module(service: ServiceConfig, weights: bool = True) -> torch.nn.Module:
    """Load a service's model as a module, on the CPU, in the dtype of the configuration.

    Args:
        service: The service's table.
        weights: Whether to read the weights of a module that a callable builds.

    Raises:
        ModelError: If torch cannot run the model.
        ArgumentError: If the model cannot have the dtype of the configuration.
    """
    model = service.model or ""
    if OBJECT.fullmatch(model):
        module = _built(service, model, weights)
    else:
        for option in service.options:
            if option in ("arguments", "weights"):
                text = f"service.{service.name}.options.{option}: needs a model 'module:callable'"
                raise ArgumentError(Code.EARG, text)
        module = _read(service, service.folder / model)
    dtypes.without_inference(module)
    return module


def _built(service: ServiceConfig, model: str, weights: bool) -> torch.nn.Module:
    import torch

    module = import_object(model, service.folder)(**service.options.get("arguments", {}))
    if not isinstance(module, torch.nn.Module):
        text = f"'{model}' must return a torch.nn.Module, not {type(module).__name__}"
        raise ModelError(Code.EMODEL, text)
    dtypes.without_inference(module)
    # Convert before reading the weights, which may have that dtype already.
    _in_dtype(service, module)
    if weights and "weights" in service.options:
        saved_weights.load(service, module, service.folder / service.options["weights"])
    if weights and (name := dtypes.without_values(module)):
        text = f"'{model}': '{name}' has no values: it is on the device 'meta' or of a lazy layer"
        raise ModelError(
            Code.EMODEL, f"{text}; return a module with values, or set options.weights"
        )
    return module


def _in_dtype(service: ServiceConfig, module: torch.nn.Module) -> None:
    import torch

    if service.dtype:
        dtypes.convert(module, getattr(torch, service.dtype), f"service.{service.name}.dtype")


def _read(service: ServiceConfig, path: Path) -> torch.nn.Module:
    if path.is_dir() and service.task:
        return huggingface.read_directory(service, path)
    if service.task:
        text = f"{path}: no such directory; task '{service.task}' needs a Hugging Face directory"
        raise ModelError(Code.EMODEL, text)
    if not path.exists():
        raise ModelError(Code.EMODEL, f"{path}: no such file")
    if path.is_file() and is_exported(path):
        return _exported(service, path)
    if path.is_file() and is_torchscript(path):
        module = script(path)
        _in_dtype(service, module)
        return module
    what = file_kinds.describe(path)
    if not what and path.suffix == ".onnx":
        what = "named as an ONNX file; for one set backend = 'onnx'"
    if what:
        raise ModelError(Code.EMODEL, f"{path.name} is {what}")
    text = f"{path.name}: torch cannot load it (an unknown kind of file); a model is {KINDS}"
    raise ModelError(Code.EMODEL, text)


def script(path: Path) -> torch.jit.ScriptModule:
    """Read a TorchScript file, on the CPU.

    Raises:
        ModelError: If torch cannot load it.
    """
    import torch

    try:
        return torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        text = f"{path.name}: torch cannot load it ({reason}); a model is {KINDS}"
        raise ModelError(Code.EMODEL, text) from error


def _exported(service: ServiceConfig, path: Path) -> torch.nn.Module:
    import torch

    try:
        program = torch.export.load(path)
    except Exception as error:  # from another version of torch, or with unknown operations
        reason = " ".join(str(error).split())[:200]
        text = f"{path.name}: torch {torch.__version__} cannot load this program of torch.export"
        raise ModelError(Code.EMODEL, f"{text} ({reason})") from error
    _check_rows(service, path, program)
    module: torch.nn.Module = program.module()
    _check_program_dtype(service, path, module)
    return module


def _check_program_dtype(service: ServiceConfig, path: Path, module: torch.nn.Module) -> None:
    """Refuse another dtype than that of the export, which the program's operations contain."""
    mine = dtypes.own(module)
    if service.dtype and mine and dtypes.short(mine) != service.dtype:
        key = f"service.{service.name}.dtype"
        text = f"{path.name} computes in {dtypes.short(mine)}, as it was exported"
        instead = f"leave dtype out, or export the module in {service.dtype}"
        raise ArgumentError(Code.EARG, f"{key}: {text}; {instead}")


def _check_rows(service: ServiceConfig, path: Path, program: Any) -> None:
    """Refuse a program that does not accept the numbers of rows of batches.

    Raises:
        ModelError: With the way to export it.
    """
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if node.op != "placeholder" or node.name not in names or not shape:
            continue
        least, most = _range(program, shape[0])
        if least > 1 or most < service.max_batch_rows:
            rows = f"only {least} rows" if least == most else f"{least} to {most} rows"
            needed = f"batches have 1 to {service.max_batch_rows} (max_batch_rows)"
            text = f"{path.name}: exported for {rows} of '{node.name}', and {needed}"
            how = f"torch.export.export(module, (x,), {DYNAMIC})"
            raise ModelError(Code.EMODEL, f"{text}. Export it with free rows: {how}")


def _range(program: Any, rows: Any) -> tuple[int, int]:
    if isinstance(rows, int):
        return rows, rows
    limits = program.range_constraints.get(rows.node.expr)
    if limits is None:  # a number of rows that is computed from others
        return 0, 2**63
    # torch writes 2 for dimensions that it has not tried with 0 and 1, but accepts these too.
    least = 1 if limits.lower == 2 else int(limits.lower)
    return least, int(limits.upper) if limits.upper.is_Integer else 2**63
