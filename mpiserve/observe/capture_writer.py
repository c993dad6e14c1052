"""The process that writes what an inference rank has captured; started by `capture`.

    python -P -m mpiserve.observe.capture_writer RING

It never makes the rank wait for the disk, and it outlives the rank: what is in their common memory
then, it still writes.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiserve._lib.ring import Ring, Table
from mpiserve.observe import capture_files as files

TABLE_BYTES = 2**23  # of the rows of a service that are not in a file yet
TOGETHER = 8  # parts of one size that become one
MERGED_BYTES = 2**26  # of the largest part that is made so while the rank may need the writer
WHOLE_BYTES = 2**32  # of the parts that become one file at the end
LOOK_S = 0.02  # between two looks for rows


class Service:
    """What the writer has of one service.

    Args:
        told: Its settings: name, tensors, attributes.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self.name: str = told["name"]
        self.attributes: dict[str, Any] = told["attributes"]
        self.versions: dict[int, str] = {}
        signature = json.loads(self.attributes["signature"])
        tensors = [(side, tensor) for side in files.SIDES for tensor in signature[side]]
        self._tensors = [
            (f"{side}/{t['name']}", files.Tensor(t["name"], t["dtype"], tuple(t["shape"])))
            for side, t in tensors
        ]
        row_bytes = [tensor.row_bytes for _, tensor in self._tensors]
        self.table = Table(row_bytes, max(1, TABLE_BYTES // max(1, sum(row_bytes))))

    def arrays(self, head: int, offset_ns: int) -> dict[str, np.ndarray]:
        """Return the rows as the datasets of a file, by path."""
        rows, columns = self.table.rows, self.table.columns
        made = {
            path: memory[:rows].view(tensor.stored).reshape(rows, *tensor.shape)
            for (path, tensor), memory in zip(self._tensors, self.table.tensors, strict=True)
        }
        made |= {name: column[:rows] for name, column in columns.items() if name != "model"}
        made["time"] = (columns["time"][:rows] + offset_ns) * 1e-9
        made["head"] = np.full(rows, head, np.int32)
        numbers, which = np.unique(columns["model"][:rows], return_inverse=True)
        names = [self.versions.get(int(number), "").encode() for number in numbers]
        longest = max(1, *map(len, names))
        made["version"] = np.array(names, f"S{longest}")[which]
        return made


class Orders:
    """What the rank says, line by line, until it has ended.

    Attributes:
        over: Whether it has.
    """

    def __init__(self) -> None:
        self._parent = os.pidfd_open(os.getppid())
        self._rest = b""
        self._later: list[dict[str, Any]] = []
        self.over = False

    def first(self) -> dict[str, Any]:
        """Return the first line.

        Raises:
            EOFError: If the rank has ended without it.
        """
        while not self.over:
            if lines := self.wait(LOOK_S):
                self._later = lines[1:]
                return lines[0]
        raise EOFError("the rank has ended")

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        """Wait for lines, at most so long."""
        if self._later:
            later, self._later = self._later, []
            return later
        ready, *_ = select.select([0, self._parent], [], [], seconds)
        if 0 in ready:
            data = os.read(0, 2**20)
            self._rest += data
            self.over = self.over or not data
        elif ready:  # a process that it has forked may hold the pipe
            self.over = True
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]


class Writer:
    """Writes the files of one rank.

    Args:
        told: What the rank says in its first line.
        ring: The memory with the rows.
        orders: What the rank says later.
    """

    def __init__(self, told: dict[str, Any], ring: Ring, orders: Orders) -> None:
        self._ring, self._orders = ring, orders
        self._folder, self._run = Path(told["folder"]), str(told["run"])
        self._rank, self._seconds = int(told["rank"]), float(told["flush_s"])
        self._how = files.filters(told["compression"], told["compression_level"])
        self._attributes = told["attributes"] | {
            "numpy": np.__version__,
            "h5py": h5py.version.version,
            "hdf5": h5py.version.hdf5_version,
        }
        self._services = [Service(each) for each in told["services"]]
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._parts: list[tuple[int, int, int]] = []  # level, first and last of its parts
        self._next = 0
        self._due = time.monotonic() + self._seconds
        self.rows = self.physics = 0

    def listen(self, seconds: float) -> None:
        """Note the names of versions that the rank says, at most so long."""
        for message in self._orders.wait(seconds):
            versions = self._services[message["service"]].versions
            versions[message["model"]] = message["version"]

    def work(self) -> bool:
        """Take what is there, and write it if it is time to, or much.

        Returns:
            Whether there may be more.
        """
        full = self._ring.take([service.table for service in self._services])
        if full >= 0 or time.monotonic() >= self._due:
            self.flush()
        return full >= 0

    def flush(self) -> None:
        """Write the rows that are in memory as one more part."""
        self._due = time.monotonic() + self._seconds
        self.listen(0)  # a version was named before its first row came
        filled = [service for service in self._services if service.table.rows]
        if not filled:
            return
        groups = {s.name: (s.attributes, s.arrays(self._rank, self._offset_ns)) for s in filled}
        attributes = self._attributes | {"dropped_rows": self._ring.dropped}
        files.put(self._path(self._next, self._next), files.image(attributes, groups, self._how))
        for service in filled:
            self.rows += service.table.rows
            source = service.table.columns["source"][: service.table.rows]
            self.physics += int(np.count_nonzero(source))
            service.table.rows = 0
        self._parts.append((0, self._next, self._next))
        self._next += 1
        self._merge_alike()

    def end(self) -> None:
        """Write what is left, make one file of all parts, and an index of those of all ranks."""
        while self.work():
            pass
        self.flush()
        sizes = [self._path(first, last).stat().st_size for _, first, last in self._parts]
        if self._parts and sum(sizes) <= WHOLE_BYTES:
            self._merge(len(self._parts), files.path_of(self._folder, self._run, self._rank))
        files.index(self._folder, self._run)

    def _path(self, first: int, last: int) -> Path:
        return files.path_of(self._folder, self._run, self._rank, first, last)

    def _merge_alike(self) -> None:
        """Keep the parts few: the last ones of one level become one of the next."""
        while len(self._parts) >= TOGETHER:
            last = self._parts[-TOGETHER:]
            paths = [self._path(first, end) for _, first, end in last]
            alike = len({level for level, *_ in last}) == 1
            if not alike or sum(path.stat().st_size for path in paths) > MERGED_BYTES:
                return
            merged = last[0][0] + 1, last[0][1], last[-1][2]
            self._merge(TOGETHER, self._path(*merged[1:]))
            self._parts.append(merged)

    def _merge(self, n: int, target: Path) -> None:
        paths = [self._path(first, last) for _, first, last in self._parts[-n:]]
        files.merge(paths, target, self._how)
        for path in paths:
            path.unlink()
        del self._parts[-n:]


def write(ring: Ring) -> Writer:
    """Write until the rank has ended."""
    orders = Orders()
    first = orders.first()
    writer = Writer(first, ring, orders)
    say("ready")
    while not orders.over:
        writer.listen(0 if writer.work() else LOOK_S)
    writer.end()
    return writer


def say(line: str) -> None:
    """Tell the rank, which may not be there any more."""
    with suppress(OSError):
        os.write(1, line.encode() + b"\n")


def reason(error: Exception) -> str:
    """Say in one line why the writer stops; HDF5 says in many what the kernel has said."""
    if isinstance(error, OSError) and error.errno:
        where = f": {error.filename}" if error.filename else ""
        return os.strerror(error.errno) + where
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def main() -> int:
    """Be the writer. Its failure is told to the rank, which logs it; nobody reads its stderr."""
    number = int(sys.argv[1])
    ring = Ring(mmap.mmap(number, os.fstat(number).st_size))
    try:
        writer = write(ring)
    except Exception as error:
        ring.close(reason(error))
        return 1
    ring.close("the rank has ended")
    say(json.dumps({"rows": writer.rows, "physics": writer.physics}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
