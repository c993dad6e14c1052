"""Complete services that give no inputs or outputs, by what their model files say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpiserve.config.model_file import (
    SIDES,
    FileSignature,
    FileTensor,
    UnreadableError,
    names_of,
)
from mpiserve.config.service import ServiceConfig
from mpiserve.config.signature import read_signature
from mpiserve.config.tables import MODEL_DTYPES, TensorConfig
from mpiserve.config.values import OBJECT
from mpiserve.config.version import VERSION

FUNCTIONS = {"inputs": "preprocess", "outputs": "postprocess"}


class Completed(NamedTuple):
    """What the file of a service's model has added to its table.

    Attributes:
        added: The keys, and their values.
        signature: The signature that the file describes.
        problem: Why nothing could be added.
    """

    added: dict[str, list[dict[str, Any]]]
    signature: FileSignature | None
    problem: str = ""


def completions(services: Any, folder: Path) -> dict[str, Completed]:
    """Read what the tables of services leave out from the files of their models.

    Args:
        services: The tables as the user wrote them, which may be of any kind.
        folder: The folder of the configuration.

    Returns:
        What the files add, by service.
    """
    if not isinstance(services, Mapping):
        return {}
    return {
        name: _completed(table, sides, folder)
        for name, table in services.items()
        if (sides := _missing(table))
    }


def _missing(table: Any) -> list[str]:
    """Return the keys that a table leaves out, and that the file of its model may say."""
    if not isinstance(table, Mapping) or "task" in table:
        return []
    model, backend = table.get("model"), table.get("backend", "deepspeed")
    if backend not in ("deepspeed", "torch", "onnx") or not isinstance(model, str) or not model:
        return []
    if OBJECT.fullmatch(model) and backend != "onnx":
        return []
    # Of a model between functions, the file says the tensors of the model.
    return [side for side in SIDES if side not in table and FUNCTIONS[side] not in table]


def _completed(table: Mapping[str, Any], sides: list[str], folder: Path) -> Completed:
    model, version = table["model"], table.get("version", "")
    if isinstance(version, str):
        model = model.replace(VERSION, version)
    try:
        signature = read_signature(model, folder, table.get("backend", "deepspeed"))
        return Completed({side: signature.tables(side) for side in sides}, signature)
    except UnreadableError as error:
        return Completed({}, None, str(error))


def contradiction(service: ServiceConfig, signature: FileSignature) -> tuple[str, str] | None:
    """Find a tensor of the configuration that contradicts the file that completed it.

    Returns:
        The key, and what both say; or None.
    """
    model = service.of_model()
    for side in SIDES:
        mine, theirs = getattr(model, side), getattr(signature, side)
        for text in _differences(side, mine, theirs, signature):
            return side, text
    return None


def _differences(
    side: str,
    mine: tuple[TensorConfig, ...],
    theirs: tuple[FileTensor, ...],
    signature: FileSignature,
) -> Iterator[str]:
    said = f"the configuration has {names_of(mine)}, and {signature.file} {names_of(theirs)}"
    if signature.by_name:
        known = {tensor.name: tensor for tensor in theirs}
        wrong = {tensor.name for tensor in mine} - set(known)
        wrong |= set(known) - {tensor.name for tensor in mine} if side == "inputs" else set()
        if wrong:
            yield f"{said}: '{min(wrong)}' is not in both"
            return
        theirs = tuple(known[tensor.name] for tensor in mine)
    elif len(mine) != len(theirs):
        yield f"{said}: the numbers differ"
        return
    for one, other in zip(mine, theirs, strict=True):
        if not _alike(one, other, signature.by_name):
            configured = f"the configuration says {one.dtype} {list(one.shape)}"
            yield f"'{one.name}': {configured}, and {signature.file} {other}"


def _alike(mine: TensorConfig, theirs: FileTensor, same_dtype: bool) -> bool:
    """Compare a tensor; torch converts floating numbers, and ONNX nothing."""
    dtypes = {mine.dtype, theirs.dtype}
    if len(dtypes) > 1 and (same_dtype or not dtypes <= set(MODEL_DTYPES)):
        return False
    if theirs.dims is None:
        return True
    return len(theirs.dims) == len(mine.shape) and all(
        isinstance(dim, str) or dim == size
        for dim, size in zip(theirs.dims, mine.shape, strict=True)
    )


def origin(service: ServiceConfig) -> str:
    """Say in one line which tensors of a service its model's file has said; "" if none."""
    file, sides = service.completed_by
    if not sides:
        return ""
    listed = [
        f"{side} {', '.join(f'{t.name} {t.dtype} {list(t.shape)}' for t in getattr(service, side))}"
        for side in sides
    ]
    return f"service {service.name}: {'; '.join(listed)} (read from {file})"
