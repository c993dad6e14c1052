"""`capture info` and `merge`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiserve import terminal
from mpiserve.errors import Error
from mpiserve.failure import describe
from mpiserve.observe import capture_files as files
from mpiserve.observe.capture_data import files_of


def told(program: Callable[..., None]) -> Callable[..., int]:
    """Print an error in one line; return the status."""

    @wraps(program)
    def run(*args: Any) -> int:
        try:
            program(*args)
        except Error as error:
            print(f"mpiserve: {error}", file=sys.stderr)
        except (OSError, ValueError, KeyError) as error:
            print(f"mpiserve: {describe(error)}", file=sys.stderr)
        else:
            return 0
        return 1

    return run


def _shown(tensors: Sequence[files.Tensor]) -> str:
    return ", ".join(f"{t.name} {t.dtype}{[*t.shape]}" for t in tensors)


def _groups(path: str) -> dict[tuple[str, str], list[h5py.Group]]:
    """Return the groups of each service, of several jobs also by signature."""
    found: dict[tuple[str, str], list[h5py.Group]] = {}
    for file in files.opened_all(_files(path)):
        for name, group in file.items():
            found.setdefault((name, str(group.attrs["signature"])), []).append(group)
    return found


def _files(path: str) -> list[Path]:
    found = files_of(Path(path))
    if not found:
        raise ValueError(f"{path}: no capture is there")
    return found


@told
def info(path: str) -> None:
    """Print what is in a capture."""
    from rich.table import Table

    table = Table("service", "rows", "files", "inputs", "outputs", "clients", "steps", "versions")
    found = _groups(path)
    for (name, _), groups in found.items():
        signature = files.signature_of(groups[0])
        rows = sum(map(files.rows_of, groups))
        clients, versions, steps = set[int](), set[str](), set[int]()
        for group in groups:
            clients |= {*np.unique(group["rank"][:]).tolist()}
            versions |= {text.decode() for text in np.unique(group["version"][:])} - {""}
            steps |= {int(group["step"][:].min()), int(group["step"][:].max())} if rows else set()
        sides = [_shown(signature[side]) for side in files.SIDES]
        span = f"{min(steps)} to {max(steps)}" if steps else ""
        counts = str(rows), str(len(groups)), *sides, str(len(clients))
        table.add_row(name, *counts, span, ", ".join(sorted(versions)))
    terminal.console().print(table)
    for (name, _), groups in found.items():
        if physics := sum(int(np.count_nonzero(group["source"][:])) for group in groups):
            print(f"{name}: {physics} of the rows come from the physics")
    if lost := files.dropped({group.file for groups in found.values() for group in groups}):
        print(f"{lost} rows were dropped, as the buffer was full (on_full, buffer_bytes)")


@told
def merge(path: str, output: str, compression: str) -> None:
    """Write all rows into one file."""
    found = _files(path)
    files.merge(found, Path(output), files.filters(compression, None))
    print(f"{output}: {len(found)} files")
