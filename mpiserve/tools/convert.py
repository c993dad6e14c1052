"""`convert`: write a TorchScript file as a program of torch.export that takes any rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends import file_kinds
from mpiserve.config.model_file import FileTensor, UnreadableError, is_torchscript
from mpiserve.config.tables import DTYPES
from mpiserve.errors import ArgumentError, Code, ModelError
from mpiserve.tools.init import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence


def convert(source: Path, target: Path, inputs: str) -> str:
    """Convert a file, and compare the new one with it.

    Args:
        source: The TorchScript file, on whose rows a request is: the first dimension of inputs.
        target: The new file, a program of torch.export. Nothing may be there.
        inputs: The inputs, such as "x float32 3, t float64": name, dtype and sizes of a row, in
            the order of the model. "": those that torch.jit.trace has saved in the file.

    Returns:
        A line that says how far apart the results of both files are.

    Raises:
        ArgumentError: If the target is there, or the inputs are not those of the model.
        ModelError: If the file is not TorchScript, does not say its inputs, or if torch cannot
            convert it to a program that gives the same results. Then nothing is written.
    """
    from mpiserve.backends.torch import script_export

    module = _read(source)
    if target.exists():
        raise ArgumentError(Code.EARG, f"{target} is there already: choose another --output")
    found = _given(source, module, inputs) if inputs else _saved(source)
    try:
        program = script_export.program_of(module, found)
        part = script_export.write(target, module, program, found)
    except ModelError as error:
        raise ModelError(error.code, f"{source}: {error}") from error
    text = f"wrote {target}: its results differ from those of {source} by at most {part:.1g}"
    return f"{text} of the largest value, on {', '.join(map(str, script_export.COMPARED))} rows"


def _read(source: Path) -> Any:
    from mpiserve.backends.torch import model_files

    if not source.is_file():
        raise ModelError(Code.EMODEL, f"{source}: no such file")
    if not is_torchscript(source):
        what = file_kinds.describe(source) or "of an unknown kind"
        raise ModelError(Code.EMODEL, f"{source} is not TorchScript; it is {what}")
    return model_files.script(source).eval()


def _given(source: Path, module: Any, inputs: str) -> Sequence[FileTensor]:
    """Read the option: as many inputs as the model has, in its order; their names are free."""
    from mpiserve.backends.torch import script_export

    names = script_export.argument_names(module)
    found = [FileTensor(t["name"], t["dtype"], ("rows", *t["shape"][1:])) for t in tensors(inputs)]
    if len(found) != len(names):
        text = f"--inputs has {len(found)} tensors, and {source} takes {len(names)}"
        raise ArgumentError(Code.EARG, f"{text}: {', '.join(names)}")
    given = [tensor.name for tensor in found]
    if given != names and sorted(given) == sorted(names):
        text = f"--inputs is in the order {', '.join(given)}, and {source} takes"
        raise ArgumentError(Code.EARG, f"{text} {', '.join(names)}")
    if wrong := next((t.dtype for t in found if t.dtype not in DTYPES), ""):
        raise ArgumentError(Code.EARG, f"--inputs: {wrong!r} is none of {', '.join(DTYPES)}")
    return found


def _saved(source: Path) -> Sequence[FileTensor]:
    from mpiserve.backends.torch import traced

    try:
        return traced.read(str(source), source).inputs
    except UnreadableError as error:
        text = f"{error}. Or give --inputs 'x float32 3': name, dtype and sizes of a row, of each"
        raise ModelError(Code.EMODEL, text) from None
