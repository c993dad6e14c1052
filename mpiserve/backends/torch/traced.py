"""Find out the signature of a TorchScript file that holds the inputs of its trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends.torch.dtypes import short
from mpiserve.config.model_file import FileSignature, FileTensor, UnreadableError
from mpiserve.failure import describe

if TYPE_CHECKING:
    import torch

ROWS = (2, 3)  # two sizes show which dimension of an output is the rows


def read(model: str, path: Path) -> FileSignature:
    """Read the inputs of a trace, and run the model on zeros to see its outputs.

    TorchScript does not say which dimensions are dynamic: the first one of each input is taken
    for the rows, and the outputs must have as many.

    Raises:
        UnreadableError: If the file has no shapes, or the model does not accept other rows.
    """
    import torch

    try:
        # Without this argument, torch 2.13 does not read the shapes that torch.jit.trace has saved.
        module = torch.jit.load(str(path), map_location="cpu", _restore_shapes=True).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UnreadableError(f"{model}: torch cannot load it ({reason})") from None
    inputs = _inputs(model, module)
    try:
        few, more = (_outputs(module, inputs, rows) for rows in ROWS)
    except Exception as error:  # of the model
        text = f"{model} was traced with {_shapes(inputs)}, and fails on {ROWS[0]} rows of zeros"
        raise UnreadableError(f"{text} ({describe(error)}): write inputs and outputs") from None
    outputs = tuple(_output(name, few[name], more[name]) for name in few)
    given = tuple(tensor._replace(dims=("rows", *_dims(tensor)[1:])) for tensor in inputs)
    return FileSignature(model, given, outputs, False, "torch.jit.trace a module of any rows")


def _inputs(model: str, module: Any) -> list[FileTensor]:
    names = [argument.name for argument in module.forward.schema.arguments][1:]
    kinds = [value.type() for value in module.graph.inputs()][1:]
    if any(kind.kind() != "TensorType" or not kind.sizes() for kind in kinds):
        table = '{ name = "%s", dtype = "float32", shape = [-1, 2] }'
        tables = ", ".join(table % name for name in names)
        text = f"{model} is TorchScript without the shapes of its inputs: write yours, as in"
        raise UnreadableError(f"{text} inputs = [{tables}], and outputs alike")
    return [
        FileTensor(name, short(kind.dtype()), tuple(kind.sizes()))
        for name, kind in zip(names, kinds, strict=True)
    ]


def _outputs(module: Any, inputs: list[FileTensor], rows: int) -> dict[str, torch.Tensor]:
    import torch

    zeros = [
        torch.zeros((rows, *_dims(tensor)[1:]), dtype=getattr(torch, tensor.dtype))
        for tensor in inputs
    ]
    with torch.no_grad():
        result = module(*zeros)
    if isinstance(result, Mapping):
        return dict(result)
    results = result if isinstance(result, (tuple, list)) else [result]
    names = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    return dict(zip(names, results, strict=True))


def _output(name: str, few: torch.Tensor, more: torch.Tensor) -> FileTensor:
    """Describe an output; its rows are those of the inputs, or it has none."""
    dims: tuple[int | str, ...] = tuple(more.shape)
    if tuple(few.shape[:1]) == ROWS[:1] and tuple(more.shape[:1]) == ROWS[1:]:
        dims = ("rows", *dims[1:])
    return FileTensor(name, short(more.dtype), dims)


def _dims(tensor: FileTensor) -> tuple[Any, ...]:
    return tensor.dims or ()


def _shapes(inputs: list[FileTensor]) -> str:
    return ", ".join(f"{tensor.name} {tensor}" for tensor in inputs)
