"""What a file says of its model: its kind, and the form of its signature."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mpiserve.config.tables import DTYPES

SIDES = ("inputs", "outputs")
PROGRAM = "serialized_exported_program.json"  # torch before 2.8
COMPUTED = re.compile(r"[-+*/(]")  # in a dimension, as in "2*rows"


class UnreadableError(Exception):
    """A file has no signature that a service can have; the text says why, and what to do."""


class FileTensor(NamedTuple):
    """A tensor as a file describes it.

    Attributes:
        name: Its name.
        dtype: Its dtype, as the configuration writes it, or as the file does if it has no name
            there.
        dims: Its dimensions, texts where they are dynamic; None if the file does not say.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...] | None

    def __str__(self) -> str:
        dims = "of unknown shape" if self.dims is None else f"[{', '.join(map(str, self.dims))}]"
        return f"{self.dtype} {dims}"


class FileSignature(NamedTuple):
    """The signature that a file describes.

    Attributes:
        file: The file, as the user named it.
        inputs: The inputs.
        outputs: The outputs.
        by_name: Whether the model is called with names; otherwise the order alone counts.
        most_rows: The most rows that the model accepts, if the file limits them.
        how: How to export the model with dynamic rows.
    """

    file: str
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    by_name: bool
    how: str
    most_rows: int | None = None

    def tables(self, side: str) -> list[dict[str, Any]]:
        """Return the inputs or the outputs as the configuration writes them.

        Raises:
            UnreadableError: If a service cannot have one of them.
        """
        return [self._table(side[:-1], tensor) for tensor in getattr(self, side)]

    def _table(self, what: str, tensor: FileTensor) -> dict[str, Any]:
        named = f"the {what} '{tensor.name}' of {self.file} is {tensor}"
        if tensor.dims is None:
            raise UnreadableError(f"{named}: write {what}s")
        if tensor.dtype not in DTYPES:
            raise UnreadableError(f"{named}: requests have {', '.join(DTYPES)}")
        first, others = tensor.dims[:1], tensor.dims[1:]
        if not first or isinstance(first[0], int):
            text = f"{named}: its first dimension is not dynamic, and must be, for it is the rows"
            raise UnreadableError(f"{text}. Export the model again: {self.how}")
        if COMPUTED.search(first[0]):
            text = f"{named}: its rows must be as many as those of the inputs"
            raise UnreadableError(f"{text}. Export a model for which this is so")
        if free := [dim for dim in others if isinstance(dim, str)]:
            text = f"{named}: beside the rows, '{free[0]}' is dynamic"
            raise UnreadableError(f"{text}. Write inputs and outputs, with its number in its place")
        return {"name": tensor.name, "dtype": tensor.dtype, "shape": [-1, *others]}


def is_torchscript(path: Path) -> bool:
    """Return whether a file is TorchScript, by its contents."""
    return holds(path, "/constants.pkl") and holds(path, "/code/")


def is_exported(path: Path) -> bool:
    """Return whether a file is a program of torch.export, by its contents."""
    return not is_compiled(path) and any(holds(path, part) for part in ("/models/", PROGRAM))


def is_compiled(path: Path) -> bool:
    """Return whether a file is a package of AOTInductor."""
    return holds(path, "/data/aotinductor/")


def holds(path: Path, part: str) -> bool:
    """Return whether an archive has a member whose name has this part."""
    return any(part in f"/{name}" for name in members(path))


def members(path: Path) -> list[str]:
    """Return the names of the files in an archive; none if it is no archive."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def names_of(tensors: Iterable[Any]) -> str:
    """Name the tensors of a side."""
    return ", ".join(tensor.name for tensor in tensors) or "none"
