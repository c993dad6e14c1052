"""New pairs of a service, from the files of its capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from mpiserve.config import ServiceConfig
from mpiserve.config.uncertainty import seen as seen_by_clients
from mpiserve.learning.reservoir import Rows, count, taken
from mpiserve.observe import capture_files as files

PHYSICS = files.SOURCES.index("physics")


class Pairs:
    """Reads what has been recorded since the last look, of this run and of earlier ones.

    Args:
        folder: Of the capture.
        service: Whose pairs.
        seen: How many rows of each rank of a run have been read before.
        say: Called with each line for the log.

    Attributes:
        seen: The same now.
    """

    def __init__(
        self, folder: Path, service: ServiceConfig, seen: dict[str, int], say: Callable[[str], None]
    ) -> None:
        self._folder, self._service, self._say = folder, service, say
        self._wanted = {
            f"{side}/{t.name}": (t.dtype, t.row_shape)
            for side, tensors in zip(
                files.SIDES, (service.inputs, seen_by_clients(service)), strict=True
            )
            for t in tensors
        }
        self.seen = seen
        self._said: set[str] = set()
        self._known: dict[Path, int] = {}  # the rows of files that never change

    def new(self) -> Iterator[Rows]:
        """Yield the new pairs, file by file. Rows with values that are not finite are left out."""
        at: dict[str, int] = {}
        following: dict[str, int] = {}
        for part in files.listed(self._folder) if self._folder.is_dir() else ():
            rank = f"{part.run}-{part.rank}"
            first = at.get(rank, 0)
            if part.first != following.setdefault(rank, 0):
                return  # the parts before are becoming a larger one
            following[rank] = part.last + 1
            try:
                end = first + self._rows_of(part.path)
                if end > self.seen.get(rank, 0):
                    yield from self._read(part.path, max(0, self.seen.get(rank, 0) - first))
            except OSError:  # it has become a part of a larger file: the next look finds that
                return
            at[rank] = end
            self.seen[rank] = max(end, self.seen.get(rank, 0))

    def fits(self, rows: Rows) -> bool:
        """Whether rows are of the tensors of the service."""
        there = {name: (array.dtype.name, array.shape[1:]) for name, array in rows.items()}
        return there == self._wanted

    def _rows_of(self, path: Path) -> int:
        if path not in self._known:
            with files.opened(path) as file:
                group = file.get(self._service.name)
                self._known[path] = 0 if group is None else files.rows_of(group)
        return self._known[path]

    def _read(self, path: Path, begin: int) -> Iterator[Rows]:
        with files.opened(path) as file:
            group = file[self._service.name]
            if not self._fits(path, group):
                return
            which = np.flatnonzero(group["source"][begin:] == PHYSICS)
            if len(which):
                rows = {name: group[name][begin:][which] for name in self._wanted}
                yield self._finite(rows)

    def _fits(self, path: Path, group: h5py.Group) -> bool:
        there = {
            f"{side}/{tensor.name}": (tensor.dtype, tensor.shape)
            for side, tensors in files.signature_of(group).items()
            for tensor in tensors
        }
        if all(there.get(name) == wanted for name, wanted in self._wanted.items()):
            return True
        self._once(f"pairs of another signature are not used: {path.name}")
        return False

    def _finite(self, rows: Rows) -> Rows:
        good = np.ones(count(rows), bool)
        for array in rows.values():
            good &= np.isfinite(array.reshape(len(array), -1)).all(1)
        if not good.all():
            self._once("pairs with values that are not finite are left out")
        return taken(rows, good)

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)
