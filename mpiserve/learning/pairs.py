"""New pairs of a service, from the files of its capture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np

from mpiserve.config import ServiceConfig
from mpiserve.config.uncertainty import seen as seen_by_clients
from mpiserve.failure import describe
from mpiserve.learning.reservoir import Rows, count, taken
from mpiserve.observe import capture_files as files

LOOKS = 3  # without success, after which that is said
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
        self._missed: dict[Path, int] = {}  # how often a file could not be read
        row = sum(tensor.row_bytes for tensor in (*service.inputs, *seen_by_clients(service)))
        self._block = max(1, files.BLOCK_BYTES // max(1, row))  # rows that are read at a time
        self._known: dict[Path, int] = {}  # the rows of files that never change

    def new(self) -> Iterator[Rows]:
        """Yield the new pairs in blocks. Rows with values that are not finite are left out.

        Those that were yielded are read: whoever ends in between goes on there.
        """
        parts = files.listed(self._folder) if self._folder.is_dir() else ()
        for rank, of_rank in groupby(parts, lambda part: f"{part.run}-{part.rank}"):
            yield from self._of_rank(rank, of_rank)

    def _of_rank(self, rank: str, parts: Iterable[files.Part]) -> Iterator[Rows]:
        """Yield the new pairs of a rank of a run, up to the first file that cannot be read."""
        first = following = 0
        for part in parts:
            if part.first != following:  # those before are becoming a larger one
                self._miss(part.path, f"part {following} is missing before it")
                return
            following = part.last + 1
            try:
                end = first + self._rows_of(part.path)
                while (begin := max(first, self.seen.get(rank, 0))) < end:
                    rows, read = self._read(part.path, begin - first)
                    self.seen[rank] = begin + read
                    if count(rows):
                        yield rows
            except (OSError, KeyError, ValueError, RuntimeError) as error:
                # It may have become a part of a larger file: the next look finds that.
                self._miss(part.path, describe(error))
                return
            first = end

    def _miss(self, path: Path, why: str) -> None:
        """Say that a file keeps pairs from being read, if that lasts."""
        self._missed[path] = self._missed.get(path, 0) + 1
        if self._missed[path] >= LOOKS:
            self._once(f"pairs of {path.name} and behind cannot be read: {why}")

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

    def _read(self, path: Path, begin: int) -> tuple[Rows, int]:
        """Read a block from a row on; return its pairs, and the rows of the file that it has."""
        with files.opened(path) as file:
            group = file[self._service.name]
            end = min(self._known[path], begin + self._block)
            if not self._fits(path, group):
                return {}, self._known[path] - begin
            which = np.flatnonzero(group["source"][begin:end] == PHYSICS)
            if not len(which):
                return {}, end - begin
            rows = {name: group[name][begin:end][which] for name in self._wanted}
            return self._finite(rows), end - begin

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
