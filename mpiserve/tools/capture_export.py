"""`capture export`: the rows of a service for programs that read other files than HDF5."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mpiserve.observe.capture_data import Capture
from mpiserve.observe.capture_files import BLOCK_BYTES
from mpiserve.tools.capture import told

BLOCK_ROWS = 2**16  # that are in memory at once, if they are no more than BLOCK_BYTES
NEEDS = {".parquet": "pyarrow", ".zarr": "zarr"}


@told
def export(path: str, output: str, service: str | None, source: str | None) -> None:
    """Write the rows of a service, without holding all of them in memory."""
    to, ending = Path(output), Path(output).suffix
    if ending not in FORMATS:
        raise ValueError(f"{output}: what is written ends in {', '.join(FORMATS)}")
    if ending in NEEDS and not find_spec(NEEDS[ending]):
        raise ValueError(f"{ending} needs {NEEDS[ending]}: pip install {NEEDS[ending]}")
    if to.is_dir():
        raise ValueError(f"{output} is there: remove it, or write another one")
    capture, fresh = Capture(path, service, source), to.with_name(f".{to.name}.new")
    try:
        FORMATS[ending](capture, fresh)
        fresh.replace(to)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.unlink(missing_ok=True)
    print(f"{output}: {len(capture)} rows of '{capture.service}'")


def _most_rows(capture: Capture) -> int:
    """Return how many rows, of all columns, are read at a time."""
    kinds = (capture.read(path, 0, 0) for path in capture.columns)
    row = sum(kind.itemsize * int(np.prod(kind.shape[1:], dtype=np.int64)) for kind in kinds)
    return max(1, min(BLOCK_ROWS, len(capture), BLOCK_BYTES // max(1, row)))


def _blocks(capture: Capture) -> Iterator[tuple[int, int]]:
    most = _most_rows(capture)
    for begin in range(0, len(capture), most):
        yield begin, min(begin + most, len(capture))


def _arrays(capture: Capture) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the path of each dataset, its name in other files, and an array of its kind."""
    for path in capture.columns:
        kind = capture.read(path, 0, 0)
        if kind.dtype.kind == "S":  # names of versions: those of later files may be longer
            read = (capture.read(path, *block).dtype.itemsize for block in _blocks(capture))
            kind = kind.astype(f"S{max((1, *read))}")
        yield path, path.replace("/", "."), kind


def to_npz(capture: Capture, output: Path) -> None:
    """Write an archive for numpy.load, with an array for each tensor and column."""
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for path, name, kind in _arrays(capture):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(kind.dtype),
                    "fortran_order": False,
                    "shape": (len(capture), *kind.shape[1:]),
                }
                np.lib.format.write_array_header_2_0(file, header)
                for begin, end in _blocks(capture):
                    rows = capture.read(path, begin, end).astype(kind.dtype)
                    file.write(np.ascontiguousarray(rows).data)


def to_zarr(capture: Capture, output: Path) -> None:
    """Write a group of Zarr, with an array for each tensor and column, as xarray reads it."""
    import zarr

    # In version 3 texts have no type yet that other programs know.
    group = zarr.open_group(output, mode="w", zarr_format=2)
    for path, name, kind in _arrays(capture):
        shape = (len(capture), *kind.shape[1:])
        # Without a value that stands for none: xarray would make NaN of each 0.
        how: Any = {
            "chunks": (_most_rows(capture), *shape[1:]),
            "dtype": kind.dtype,
            "fill_value": None,
        }
        made = group.create_array(name, shape=shape, **how)
        dims = ["row", *(f"{name}.{i}" for i in range(1, kind.ndim))]
        made.attrs["_ARRAY_DIMENSIONS"] = dims
        for begin, end in _blocks(capture):
            made[begin:end] = capture.read(path, begin, end)


def to_parquet(capture: Capture, output: Path) -> None:
    """Write a table of Parquet; a tensor is a list of as many numbers as a row has.

    Raises:
        ValueError: If it has no such type.
    """
    import pyarrow
    from pyarrow import parquet

    every = [*_arrays(capture)]
    schema = pyarrow.schema([_field(pyarrow, name, kind) for _, name, kind in every])
    with parquet.ParquetWriter(output, schema) as writer:
        for block in _blocks(capture):
            columns = [
                _column(pyarrow, capture.read(path, *block), field.type)
                for (path, *_), field in zip(every, schema, strict=True)
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _field(pyarrow: Any, name: str, kind: np.ndarray) -> Any:
    if kind.dtype.kind == "c":
        raise ValueError(f"Parquet has no {kind.dtype}, which '{name}' is: write .zarr or .npz")
    value = pyarrow.string() if kind.dtype.kind == "S" else pyarrow.from_numpy_dtype(kind.dtype)
    shape = kind.shape[1:]
    if not shape:
        return pyarrow.field(name, value)
    listed = pyarrow.list_(value, int(np.prod(shape, dtype=np.int64)))
    return pyarrow.field(name, listed, metadata={"shape": str([*shape])})


def _column(pyarrow: Any, rows: np.ndarray, kind: Any) -> Any:
    if rows.dtype.kind == "S":
        rows = rows.astype(str)
    if rows.ndim == 1:
        return pyarrow.array(rows, kind)
    flat = pyarrow.array(np.ascontiguousarray(rows).reshape(-1), kind.value_type)
    return pyarrow.FixedSizeListArray.from_arrays(flat, kind.list_size)


FORMATS: dict[str, Callable[[Capture, Path], None]] = {
    ".npz": to_npz,
    ".parquet": to_parquet,
    ".zarr": to_zarr,
}
