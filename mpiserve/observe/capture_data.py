"""Read a capture: `mpiserve.Capture`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from mpiserve.errors import ArgumentError, Code
from mpiserve.observe import capture_files as files

GAP_BYTES = 2**17  # between two rows that are asked for which are read along: a read has a price
Arrays = dict[str, np.ndarray]
Pair = tuple[Arrays, Arrays]


def files_of(path: Path) -> list[Path]:
    """Return the files of a folder, or the file."""
    if path.is_dir():
        return [part.path for part in files.listed(path)]
    return [path]


def _known(path: Path) -> dict[str, list[tuple[Path, int, str]]]:
    """Return the files of each service, its rows there and its signature."""
    listed = files_of(path)
    known: dict[str, list[tuple[Path, int, str]]] = {}
    try:
        for each in listed:
            with files.opened(each) as file:
                for name, group in file.items():
                    told = each, files.rows_of(group), str(group.attrs["signature"])
                    known.setdefault(name, []).append(told)
    except FileNotFoundError:
        if files_of(path) == listed:
            raise
        return _known(path)  # its writer has merged some meanwhile
    return known


class Capture:
    """Rows that were captured: a lazy sequence, also as a dataset of torch.

    Item i is a pair of dicts by tensor, the inputs and the outputs of row i, and a slice or an
    array of numbers gives both for several rows, with a first dimension. Rows are those of the
    first rank, in the order of its answers, then those of the next one. Nothing is read before it
    is asked for. A process that it is sent to opens the files itself.

    Args:
        path: The folder of a capture, or a file of it.
        service: The name of the service; needed where there are several.
        source: Only rows whose outputs are of the "model", or of the "physics", which a simulation
            has recorded; by default both.

    Attributes:
        service: The name of the service.
        inputs: The names of its inputs.
        outputs: The names of its outputs.

    Raises:
        ArgumentError: If there is no capture, or no such service in it.
    """

    def __init__(
        self, path: str | Path, service: str | None = None, source: str | None = None
    ) -> None:
        self._paths: list[Path] = []
        self._ends: list[int] = []
        self._open: dict[int, h5py.Group] = {}
        self._datasets: dict[
            tuple[int, str], h5py.Dataset
        ] = {}  # to open one takes as long as to read
        self._kept: np.ndarray | None = None  # the numbers of rows of that source; None: all are
        self.service = self._choose(Path(path), service)
        signature = files.signature_of(self._group(0))
        self._sides = [signature[side] for side in files.SIDES]
        self.inputs, self.outputs = ([t.name for t in tensors] for tensors in self._sides)
        if source is not None:
            self._kept = self._of_source(source)

    def _of_source(self, source: str) -> np.ndarray:
        if source not in files.SOURCES:
            raise ArgumentError(Code.EARG, f"source '{source}': {' or '.join(files.SOURCES)}")
        return np.flatnonzero(self.column("source") == files.SOURCES.index(source))

    def _choose(self, path: Path, service: str | None) -> str:
        """Note the files that have the service, and how many rows; return its name."""
        try:
            known = _known(path)
        except (OSError, KeyError) as error:
            raise ArgumentError(Code.EARG, f"{path}: no capture: {error}") from None
        names = ", ".join(sorted(known))
        if not known:
            raise ArgumentError(Code.EARG, f"{path} has no rows")
        if service is None and len(known) != 1:
            raise ArgumentError(Code.EARG, f"{path} has {names}: say which service")
        name = service or next(iter(known))
        if name not in known:
            raise ArgumentError(Code.EARG, f"{path} has no service '{name}', but {names}")
        if len({signature for *_, signature in known[name]}) > 1:
            text = f"the signatures of '{name}' differ in the files of {path}: open them one by one"
            raise ArgumentError(Code.EARG, text)
        self._note([(each, rows) for each, rows, _ in known[name]])
        return name

    def _note(self, found: Sequence[tuple[Path, int]]) -> None:
        total = 0
        for path, rows in found:
            self._paths.append(path)
            self._ends.append(total := total + rows)

    def __len__(self) -> int:
        return self._ends[-1] if self._kept is None else len(self._kept)

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        where = f"{len(self)} rows in {len(self._paths)} files"
        return f"<Capture of service '{self.service}', {where}>"

    def __getitem__(self, which: Any) -> Pair:
        if isinstance(which, slice):
            return self._rows(*self._range(which))
        if isinstance(which, (list, np.ndarray)):
            return self._gathered(np.asarray(which))
        at = range(len(self))[which]
        inputs, outputs = self._rows(at, at + 1, 1)
        return {k: v[0] for k, v in inputs.items()}, {k: v[0] for k, v in outputs.items()}

    def __getitems__(self, which: Sequence[int]) -> list[Pair]:
        """Return several rows at once, as torch's DataLoader asks for them."""
        inputs, outputs = self._gathered(np.asarray(which))
        return [
            ({k: v[i] for k, v in inputs.items()}, {k: v[i] for k, v in outputs.items()})
            for i in range(len(which))
        ]

    def column(self, name: str, which: slice = slice(None)) -> np.ndarray:
        """Return what is known of rows beside their tensors, such as "step" or "rank".

        Raises:
            ArgumentError: If there is no such column; the text names those that there are.
        """
        if name not in files.MEANING or name not in self.columns:
            known = ", ".join(path for path in self.columns if "/" not in path)
            raise ArgumentError(Code.EARG, f"no column '{name}', but {known}")
        return self.read(name, *self._range(which))

    @property
    def columns(self) -> list[str]:
        """The paths of all that is known of a row: "inputs/x", "step" and so on."""
        return files.datasets_of(self._group(0))

    def batches(self, rows: int) -> Iterator[Pair]:
        """Yield all rows in their order, so many at a time."""
        for begin in range(0, len(self), rows):
            yield self[begin : begin + rows]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_datasets": {}}

    # ---- the files

    def _group(self, number: int) -> h5py.Group:
        """Return the service in a file, which is opened when it is needed."""
        if number not in self._open:
            if len(self._open) > 64:
                closed, group = self._open.popitem()
                self._datasets = {k: d for k, d in self._datasets.items() if k[0] != closed}
                group.file.close()
            self._open[number] = files.opened(self._paths[number])[self.service]
        return self._open[number]

    def _dataset(self, number: int, path: str) -> h5py.Dataset:
        """Return a dataset of the service in a file."""
        key = number, path
        if number not in self._open or key not in self._datasets:
            self._datasets[key] = self._group(number)[path]
        return self._datasets[key]

    def _range(self, which: slice) -> tuple[int, int, int]:
        begin, end, stride = which.indices(len(self))
        if stride < 1:
            raise ArgumentError(Code.EARG, "rows go forwards: reverse the arrays in place of them")
        return begin, max(begin, end), stride

    def read(self, path: str, begin: int, end: int, stride: int = 1) -> np.ndarray:
        """Return rows of one of `columns`, as they are in the files."""
        if self._kept is None:
            return self._read(path, begin, end, stride)
        numbers = self._kept[begin:end:stride]
        if not len(numbers):
            return self._read(path, 0, 0, 1)
        data = self._dataset(0, path)
        runs = _runs(numbers, data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64)))
        return np.concatenate(
            [self._read(path, run[0], run[-1] + 1, 1)[run - run[0]] for run in runs]
        )

    def _read(self, path: str, begin: int, end: int, stride: int) -> np.ndarray:
        pieces = []
        number = bisect_right(self._ends, begin)
        while begin < end and number < len(self._ends):
            first = self._ends[number - 1] if number else 0
            stop = min(end, self._ends[number])
            pieces.append(self._dataset(number, path)[begin - first : stop - first : stride])
            begin += (stop - begin + stride - 1) // stride * stride
            number = max(number + 1, bisect_right(self._ends, begin))
        if not pieces:
            return self._dataset(0, path)[:0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _tensor(self, side: int, tensor: files.Tensor, *which: int) -> np.ndarray:
        found = self.read(f"{files.SIDES[side]}/{tensor.name}", *which)
        return found.view(ml_dtypes.bfloat16) if tensor.dtype == "bfloat16" else found

    def _rows(self, *which: int) -> Pair:
        inputs, outputs = (
            {tensor.name: self._tensor(side, tensor, *which) for tensor in tensors}
            for side, tensors in enumerate(self._sides)
        )
        return inputs, outputs

    def _gathered(self, which: np.ndarray) -> Pair:
        """Return rows in any order; those that lie near each other are read together."""
        casting: Any = "same_kind" if which.size else "unsafe"
        is_mask = which.dtype == bool
        which = np.flatnonzero(which) if is_mask else which.astype(np.int64, casting=casting)
        numbers = np.where(which < 0, which + len(self), which)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"rows are 0 to {len(self) - 1}")
        if not len(numbers):
            return self._rows(0, 0, 1)
        if (np.diff(numbers) == 1).all():
            return self._rows(int(numbers[0]), int(numbers[-1]) + 1, 1)
        order = np.argsort(numbers, kind="stable")
        inputs, outputs = (
            {tensor.name: self._scattered(side, tensor, numbers, order) for tensor in tensors}
            for side, tensors in enumerate(self._sides)
        )
        return inputs, outputs

    def _scattered(
        self, side: int, tensor: files.Tensor, numbers: np.ndarray, order: np.ndarray
    ) -> np.ndarray:
        """Return rows of a tensor; `order` sorts their numbers."""
        made, done = np.empty((len(numbers), *tensor.shape), tensor.dtype), 0
        for run in _runs(numbers[order], tensor.row_bytes):
            found = self._tensor(side, tensor, int(run[0]), int(run[-1]) + 1, 1)
            made[order[done : done + len(run)]] = found[run - run[0]]
            done += len(run)
        return made


def _runs(numbers: np.ndarray, row_bytes: int) -> list[np.ndarray]:
    """Split numbers of rows, in ascending order, into those that are read together."""
    row = max(1, row_bytes)
    is_apart = np.diff(numbers) > max(1, GAP_BYTES // row)
    is_apart |= np.diff(numbers // max(1, files.BLOCK_BYTES // row)) > 0  # in bounded memory
    return np.split(numbers, np.flatnonzero(is_apart) + 1)
