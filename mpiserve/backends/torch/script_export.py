"""Make a program of torch.export, with dynamic rows, of a TorchScript module."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.config.model_file import FileTensor
from mpiserve.errors import Code, ModelError
from mpiserve.failure import describe

if TYPE_CHECKING:
    import torch

SAMPLE = 4  # rows that the conversion runs on; torch takes 0 and 1 for special
COMPARED = (1, 2, 7)  # rows on which both models must agree
WITHIN = 100  # eps of the output's dtype, times its largest value: as at warm-up


def program_of(module: Any, inputs: Sequence[FileTensor]) -> torch.export.ExportedProgram:
    """Convert a module in evaluation mode.

    Args:
        module: The TorchScript module, on the CPU.
        inputs: Its inputs; the first dimension of each is the rows.

    Raises:
        ModelError: If torch cannot convert the module, or not with dynamic rows.
    """
    import torch

    sample = _random(inputs, SAMPLE)
    rows = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            static = _converter()(module, sample).convert().module()
            _name_inputs(static, argument_names(module))
            program = torch.export.export(static, sample, dynamic_shapes=rows, strict=False)
    except ModelError:
        raise
    except Exception as error:  # torch's converter has no class of its own for them
        text = f"torch {torch.__version__} cannot convert it with free rows ({describe(error)})"
        raise ModelError(Code.EMODEL, f"{text}: export the module where its class is") from error
    return program


def argument_names(module: Any) -> list[str]:
    """Return the names of the arguments of a TorchScript module."""
    return [argument.name for argument in module.forward.schema.arguments][1:]


def write(target: Path, module: Any, program: Any, inputs: Sequence[FileTensor]) -> float:
    """Write a program under another name, compare what is read from it, and give it its name.

    Returns:
        The largest difference, as a part of the largest value of the output.

    Raises:
        ModelError: If they differ by more than rounding. Then no file is left.
    """
    import torch

    part = target.with_name(f"{target.stem}.part.pt2")
    try:
        torch.export.save(program, part)
        apart = difference(module, torch.export.load(part).module(), inputs)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return apart


def difference(module: Any, program: Any, inputs: Sequence[FileTensor]) -> float:
    """Compare a module with its program on random rows.

    Returns:
        The largest difference, as a part of the largest value of the output.

    Raises:
        ModelError: If one of them fails, or if they differ by more than rounding.
    """
    largest = 0.0
    for rows in COMPARED:
        given = _random(inputs, rows)
        before = _results("TorchScript", module, given)
        after = _results("converted, it", program, given)
        parts = [_apart(one, other) for one, other in zip(before, after, strict=False)]
        if None in parts or len(before) != len(after):
            text = f"converted, it gives other results than TorchScript on {rows} random rows"
            raise ModelError(Code.EMODEL, f"{text}: export the module where its class is")
        largest = max([largest, *(part for part in parts if part)])
    return largest


def _results(what: str, model: Any, given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Run a model, and return its outputs in one order."""
    import torch

    try:
        with torch.no_grad():
            result = model(*given)
    except Exception as error:  # of the model
        text = f"{what} fails on {len(given[0])} random rows ({describe(error)})"
        raise ModelError(Code.EMODEL, f"{text}: export the module where its class is") from error
    if isinstance(result, dict):
        return [result[key] for key in sorted(result)]
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _converter() -> Any:
    """Return torch's converter, which is no public part of torch."""
    import torch

    try:
        from torch._export.converter import TS2EPConverter
    except ImportError:
        text = f"torch {torch.__version__} has no converter of TorchScript"
        text += ": use torch 2.13, or export the module where its class is"
        raise ModelError(Code.EMODEL, text) from None
    return TS2EPConverter


def _name_inputs(module: Any, names: list[str]) -> None:
    """Give the arguments of a converted module their names; the converter has numbered them."""
    code = module.graph._codegen
    code.pytree_info = code.pytree_info._replace(orig_args=names)
    module.recompile()


def _random(inputs: Sequence[FileTensor], rows: int) -> tuple[torch.Tensor, ...]:
    """Make inputs: normally distributed floats, integers 0 and 1."""
    import torch

    generator = torch.Generator().manual_seed(rows)
    made = []
    for tensor in inputs:
        dtype, dims = getattr(torch, tensor.dtype), tensor.dims or ()
        shape: tuple[Any, ...] = (rows, *dims[1:])
        if dtype.is_floating_point or dtype.is_complex:
            made.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            made.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return tuple(made)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Return how far apart outputs are, as a part of their largest value; None: not the same."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return None
    if not (one.is_floating_point() or one.is_complex()):
        return 0.0 if torch.equal(one, other) else None
    finite = one[torch.isfinite(one)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    bound = WITHIN * torch.finfo(one.dtype).eps * largest
    if not torch.allclose(one, other, rtol=0.0, atol=bound, equal_nan=True):
        return None
    apart = float((one - other).nan_to_num().abs().max()) if one.numel() else 0.0
    return apart / largest if largest else 0.0
