"""Read what the ranks of a traced session have done: the files of csrc/base/trace.h."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
SIMULATION = 0
DRIFT = 5e-5  # of two clocks, at most, as those of computers are
CLOCK = np.dtype([("at", "i8"), ("offset", "i8"), ("round_trip", "i8")])
FILE = np.dtype(
    [("magic", "S8"), ("version", "i4"), ("n_services", "i4"), ("run", "i8")]
    + [(name, "i4") for name in ("rank", "size", "role", "node", "pid", "unused")]
    + [("n_events", "i8"), ("host", "S64"), ("opened_at", "i8"), ("opened", "i8")]
    + [("clocks", CLOCK, 2), ("written", "i8")]
)
EVENT = np.dtype(
    [("kind", "u1"), ("flags", "u1"), ("code", "i2"), ("service", "i4"), ("peer", "i4")]
    + [(name, "u4") for name in ("rows", "requests", "batch_rows")]
    + [("times", "i8", 13)]
)


@dataclass(frozen=True)
class Trace:
    """What one rank has done.

    Attributes:
        head: Its record FILE.
        names: Of its services.
        events: Records EVENT, in the order in which they ended.
        dropped: How many older ones the ring has no room for.
    """

    head: Any
    names: tuple[str, ...]
    events: Any
    dropped: int

    @property
    def rank(self) -> int:
        """The rank in the world."""
        return int(self.head["rank"])

    @property
    def host(self) -> str:
        """The host of the rank."""
        return str(self.head["host"].decode())

    @property
    def role(self) -> str:
        """The role of the rank."""
        return "simulation" if self.head["role"] == SIMULATION else "inference"

    def of(self, kind: int) -> Any:
        """Return the events of a kind."""
        return self.events[self.events["kind"] == kind]

    def name(self, event: Any) -> str:
        """Name the service of an event."""
        at = int(event["service"])
        return self.names[at] if 0 <= at < len(self.names) else ""

    def shift(self, times: Any) -> Any:
        """Return what to add to times of this rank to get those of rank 0, in nanoseconds.

        Between the clocks of open and close it is interpolated, so that a constant drift is
        followed; without a close, as after a kill, it is that of open. One of which less is known
        than a drift could make up for, because ranks shared cores, is left out.
        """
        first, last = self.head["clocks"]
        offset, span = int(first["offset"]), int(last["at"]) - int(first["at"])
        if not last["at"] or span <= 0:
            return np.full_like(times, offset)
        worse = (int(first["round_trip"]) - int(last["round_trip"])) / 2
        if not first["at"] or worse > DRIFT * span:
            return np.full_like(times, int(last["offset"]))
        if -worse > DRIFT * span:
            return np.full_like(times, offset)
        drift = int(last["offset"]) - offset
        share = np.clip((times - first["at"]) / span, 0.0, 1.0)
        return offset + np.rint(share * drift).astype(np.int64)

    def aligned(self, times: Any) -> Any:
        """Return times of this rank by the clock of rank 0; what is 0 stays 0."""
        times = np.asarray(times, np.int64)
        return np.where(times == 0, 0, times + self.shift(times))


# ---- files


def read(folders: Iterable[Path], run: int | None = None) -> list[Trace]:
    """Read the traces of a session, in the order of the ranks; others are left out.

    Args:
        folders: Where they lie: more than one, if nodes share no folder.
        run: The number of the session; None: the one that was opened last.
    """
    paths = [path for folder in folders for path in sorted(folder.glob("rank-*.trace"))]
    found = [one for path in paths if (one := _read_one(path, run)) is not None]
    if run is None and found:
        run = int(max(found, key=lambda one: int(one.head["opened_at"])).head["run"])
    mine = {one.rank: one for one in found if one.head["run"] == run}
    return [mine[rank] for rank in sorted(mine)]


def _read_one(path: Path, run: int | None) -> Trace | None:
    with suppress(OSError, ValueError), path.open("rb") as file:
        head = np.frombuffer(file.read(FILE.itemsize), FILE, 1)[0]
        if run is not None and head["run"] != run:
            return None  # of another session: its events are not read
        return parse(head, file.read(), lambda: _written(path))
    return None


def _written(path: Path) -> int:
    """Return how many events have been written by now: the rank may go on."""
    with path.open("rb") as file:
        return int(np.frombuffer(file.read(FILE.itemsize), FILE, 1)[0]["written"])


def parse(head: Any, data: bytes, written: Callable[[], int] | None = None) -> Trace:
    """Read a trace.

    Args:
        head: The beginning of the file.
        data: The rest of it.
        written: Returns the number of events after data was read; None: as in head.

    Raises:
        ValueError: If it is none, or is not whole.
    """
    if head["magic"] != b"mpitrace" or head["version"] != VERSION:
        raise ValueError("no trace, or of another version")
    services, room = int(head["n_services"]), int(head["n_events"])
    names = np.frombuffer(data, "S64", services)
    ring = np.frombuffer(data, EVENT, room, names.nbytes)
    last = int(head["written"])
    now = written() if written else last
    # The slot of the next event may hold half of it, once the ring is full.
    first = min(last, max(0, now + 1 - room))
    order = np.arange(first, last) % room
    texts = tuple(name.decode(errors="replace") for name in names)
    return Trace(head, texts, ring[order], first)


def heads(folder: Path, run: int) -> list[Any]:
    """Return the records FILE of a session, without reading events."""
    found = []
    for path in sorted(folder.glob("rank-*.trace")):
        with suppress(OSError, ValueError), path.open("rb") as file:
            head = np.frombuffer(file.read(FILE.itemsize), FILE, 1)[0]
            if head["magic"] == b"mpitrace" and head["version"] == VERSION and head["run"] == run:
                found.append(head)
    return found


def lost(found: Sequence[Any]) -> str:
    """Say how many events the rings of records FILE have no room for; "": of none."""
    full = [head for head in found if head["written"] >= head["n_events"]]
    if not full:
        return ""
    counts = [int(head["written"] + 1 - head["n_events"]) for head in full]
    return (
        f"the oldest events were dropped, {sum(counts)} on {len(full)} ranks: a rank keeps "
        f"{int(full[0]['n_events'])}, as MPISERVE_PROFILE_EVENTS says"
    )
