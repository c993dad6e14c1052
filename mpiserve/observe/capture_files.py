"""The files of a capture: their names, what is in them, and what of them belongs together.

A rank writes parts, one after the other. Each is made in memory or beside, and gets its name when
it is complete, so whoever is killed leaves whole files only. Parts are merged to larger ones; the
parts that a file covers are removed after it is there, and do not count.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

VERSION = 1  # of the layout
CHUNK_BYTES = 2**18
SPARE_FILES = 64  # that a process has open beside those of a capture
BLOCK_BYTES = 2**23  # that are copied at a time
SIDES = ("inputs", "outputs")
NAME = re.compile(r"([0-9a-f]{16})-rank(\d{6})(?:-(\d{6,})-(\d{6,}))?\.h5")

MEANING = {
    "rank": "world rank of the client that sent the request",
    "request": "number of the request, counted by client and inference rank",
    "step": "time steps that the client had begun; 0: it does not call step",
    "time": "when the request was answered, or the record taken, in seconds since 1970",
    "batch": "of the inference rank: nanoseconds of its clock when the batch was closed",
    "row_in_batch": "position of the row in its batch, or in what was recorded at once",
    "batch_rows": "rows of that batch",
    "batch_requests": "requests of that batch",
    "generation": "counts the models that have answered, from 1; 0: none has",
    "version": "name of the version of the model",
    "head": "world rank that answered, or took what was recorded",
    "source": "who has computed the outputs: 0 the model, 1 the client itself, by record()",
}
SOURCES = ("model", "physics")  # by that number


class Part(NamedTuple):
    """A file of a capture.

    Attributes:
        run: Of which session.
        rank: The world rank that wrote it.
        first: The first of its parts.
        last: The last of them; -1: it holds all of its rank.
        path: The file.
    """

    run: str
    rank: int
    first: int
    last: int
    path: Path


class Tensor(NamedTuple):
    """One tensor of a service, as the settings of a writer have it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def stored(self) -> np.dtype[Any]:
        """The type in the file: HDF5 has no bfloat16 that others read."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.stored.itemsize


# ---- names


def path_of(folder: Path, run: str, rank: int, first: int = 0, last: int = -1) -> Path:
    """Return the file of parts of a rank, or of all of them."""
    numbers = "" if last < 0 else f"-{first:06d}-{last:06d}"
    return folder / f"{run}-rank{rank:06d}{numbers}.h5"


def listed(folder: Path) -> list[Part]:
    """Return the files of a folder that count, in the order of ranks and parts."""
    found = []
    for path in folder.iterdir():
        if match := NAME.fullmatch(path.name):
            first, last = (int(match[3]), int(match[4])) if match[3] else (0, -1)
            found.append(Part(match[1], int(match[2]), first, last, path))
    return [*_uncovered(found)]


def _uncovered(parts: Iterable[Part]) -> Iterator[Part]:
    """Leave out parts that a larger file holds: its writer was killed before it removed them."""
    end: dict[tuple[str, int], float] = {}
    for part in sorted(parts, key=lambda p: (p.run, p.rank, p.first, -_last(p))):
        key = part.run, part.rank
        if part.first > end.get(key, -1):
            end[key] = _last(part)
            yield part


def _last(part: Part) -> float:
    return float("inf") if part.last < 0 else part.last


# ---- writing


def filters(compression: str, level: int | None) -> dict[str, Any]:
    """Return the arguments of create_dataset.

    Raises:
        ValueError: If there is no such compression here.
    """
    if compression == "none":
        return {}
    if compression in ("gzip", "lzf"):
        given = {} if level is None else {"compression_opts": level}
        return {"compression": compression, "shuffle": True, **given}
    try:
        import hdf5plugin
    except ImportError:
        text = f"compression '{compression}': none, gzip, lzf, or install hdf5plugin"
        raise ValueError(text) from None
    known = {name.lower(): getattr(hdf5plugin, name) for name in dir(hdf5plugin)}
    make = known.get(compression.lower())
    if not isinstance(make, type):
        raise ValueError(f"compression '{compression}': hdf5plugin has no such filter")
    return {**(make(clevel=level) if level is not None else make())}


def chunks_of(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return chunks of whole rows."""
    row = max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize)
    return (max(1, min(shape[0], CHUNK_BYTES // row)), *shape[1:])


def add_dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, how: Mapping[str, Any]
) -> h5py.Dataset:
    """Add a dataset of rows."""
    # 0 is no size of a chunk.
    chunks = chunks_of(shape, np.dtype(dtype).itemsize) if all(shape) else None
    made = group.create_dataset(name, shape, dtype, chunks=chunks, **(how if chunks else {}))
    made.dims[0].label = "row"
    return made


def image(
    attributes: Mapping[str, Any],
    groups: Mapping[str, tuple[Mapping[str, Any], Mapping[str, np.ndarray]]],
    how: Mapping[str, Any],
) -> memoryview:
    """Make a file in memory.

    Args:
        attributes: Of the file.
        groups: By service its attributes, and its arrays by their paths in the group.
        how: What `filters` returns.
    """
    with h5py.File("part", "w", driver="core", backing_store=False) as file:
        file.attrs.update(attributes)
        for name, (about, arrays) in groups.items():
            group = file.create_group(name)
            group.attrs.update(about)
            for path, array in arrays.items():
                add_dataset(group, path, array.shape, array.dtype, how)[...] = array
            explain(group)
        file.flush()
        return memoryview(file.id.get_file_image())


def explain(group: h5py.Group) -> None:
    """Say what columns mean, the units of tensors, and the types that HDF5 does not have."""
    for name, text in MEANING.items():
        if name in group:
            group[name].attrs["description"] = text
    for side, tensors in signature_of(group).items():
        for tensor in tensors:
            path = f"{side}/{tensor.name}"
            if path in group:
                group[path].attrs["dtype"] = tensor.dtype
    for path, units in json.loads(group.attrs.get("units", "{}")).items():
        group[path].attrs["units"] = units


def signature_of(group: h5py.Group) -> dict[str, list[Tensor]]:
    """Return the tensors of a service, by side."""
    told = json.loads(group.attrs["signature"])
    return {
        side: [Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in told[side]]
        for side in SIDES
    }


def put(path: Path, data: memoryview) -> None:
    """Write a file, which has its name when it is complete and on the disk."""
    with _new(path) as fresh, open(fresh, "wb", buffering=0) as file:
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())


class _new:  # noqa: N801
    """A file beside a path, which takes its name at the end, or is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self._fresh

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            os.replace(self._fresh, self._path)
        else:
            with suppress(OSError):
                self._fresh.unlink()


# ---- several files


def opened(path: Path) -> h5py.File:
    """Open a file to read. It is complete, and some file systems have no locks.

    Raises:
        FileNotFoundError: If it is not there; its writer may have merged it meanwhile.
    """
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  # HDF5 reads with its filters from then on
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if path.exists():
            raise
        # HDF5 1.14 looks for the name once more when it has opened the file, and has no errno then.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error


def opened_all(paths: Sequence[Path]) -> list[h5py.File]:
    """Open files to read, also more than a process may by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(paths) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return [opened(path) for path in paths]


def services_of(files: Sequence[h5py.File]) -> dict[str, list[h5py.Group]]:
    """Return the groups of each service.

    Raises:
        ValueError: If files differ in the signature of a service.
    """
    found: dict[str, list[h5py.Group]] = {}
    for file in files:
        for name, group in file.items():
            found.setdefault(name, []).append(group)
    for name, groups in found.items():
        for group in groups:
            if group.attrs["signature"] != groups[0].attrs["signature"]:
                where = f"{groups[0].file.filename} and {group.file.filename}"
                raise ValueError(f"the signatures of '{name}' differ in {where}")
    return found


def dropped(files: Iterable[h5py.File]) -> int:
    """Return the rows that found no room: each file of a rank says how many there were so far."""
    most: dict[tuple[Any, ...], int] = {}
    for file in files:
        key = file.attrs["run"], file.attrs["head"]
        most[key] = max(most.get(key, 0), int(file.attrs["dropped_rows"]))
    return sum(most.values())


def datasets_of(group: h5py.Group) -> list[str]:
    """Return the paths of the datasets of a service."""
    found: list[str] = []
    group.visititems(
        lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return found


def rows_of(group: h5py.Group) -> int:
    """Return the rows of a service in a file."""
    return int(group["rank"].shape[0])


def merge(paths: Sequence[Path], target: Path, how: Mapping[str, Any]) -> None:
    """Write the rows of files into one, in their order.

    Raises:
        ValueError: If they differ in the signature of a service.
    """
    files = opened_all(paths)
    try:
        with _new(target) as fresh:
            with h5py.File(fresh, "w", locking=False) as made:
                made.attrs.update(files[0].attrs)
                made.attrs["dropped_rows"] = dropped(files)
                for name, groups in services_of(files).items():
                    _merge_groups(made.create_group(name), groups, how)
            with open(fresh, "rb") as file:
                os.fsync(file.fileno())
    finally:
        for file in files:
            file.close()


def _common(groups: Sequence[h5py.Group], path: str) -> np.dtype[Any]:
    """Return the type of a dataset: of names the longest."""
    kinds = [group[path].dtype for group in groups]
    return max(kinds, key=lambda kind: kind.itemsize)


def _merge_groups(made: h5py.Group, groups: Sequence[h5py.Group], how: Mapping[str, Any]) -> None:
    made.attrs.update(groups[0].attrs)
    total = sum(map(rows_of, groups))
    for path in datasets_of(groups[0]):
        first = groups[0][path]
        to = add_dataset(made, path, (total, *first.shape[1:]), _common(groups, path), how)
        at = 0
        for group in groups:
            at = _copy(group[path], to, at)
    explain(made)


def _copy(source: h5py.Dataset, to: h5py.Dataset, at: int) -> int:
    row = max(1, source.dtype.itemsize * int(np.prod(source.shape[1:], dtype=np.int64)))
    block = max(1, BLOCK_BYTES // row)
    for begin in range(0, source.shape[0], block):
        rows = source[begin : begin + block]
        to[at : at + len(rows)] = rows
        at += len(rows)
    return at


def index(folder: Path, run: str) -> Path:
    """Write a file whose datasets are those of all files of a run, one after the other.

    Writers of several ranks may do so at the same time: who has written it looks again whether
    it has all files.
    """
    target = folder / f"{run}.h5"
    while True:
        parts = [part.path for part in listed(folder) if part.run == run]
        with suppress(FileNotFoundError):  # one was merged meanwhile
            _index(parts, target)
        if parts == [part.path for part in listed(folder) if part.run == run]:
            return target


def _index(paths: Sequence[Path], target: Path) -> None:
    files = opened_all(paths)
    try:
        with _new(target) as fresh, h5py.File(fresh, "w", locking=False) as made:
            if files:
                made.attrs.update(files[0].attrs)
                made.attrs["dropped_rows"] = dropped(files)
            for name, groups in services_of(files).items():
                _index_groups(made.create_group(name), groups)
    finally:
        for file in files:
            file.close()


def _index_groups(made: h5py.Group, groups: Sequence[h5py.Group]) -> None:
    made.attrs.update(groups[0].attrs)
    total = sum(map(rows_of, groups))
    for path in datasets_of(groups[0]):
        first = groups[0][path]
        layout = h5py.VirtualLayout((total, *first.shape[1:]), _common(groups, path))
        at = 0
        for group in groups:
            source, rows = group[path], rows_of(group)
            # By name alone, so that the folder can be moved.
            name = Path(group.file.filename).name
            layout[at : at + rows] = h5py.VirtualSource(
                name, source.name, source.shape, source.dtype
            )
            at += rows
        made.create_virtual_dataset(path, layout).dims[0].label = "row"
    explain(made)
