"""Read what the ranks of a profiled session have measured: the files of csrc/base/profile.h."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiserve.errors import Code

VERSION = 2
SUB_BITS = 3  # of a bucket: eight per power of two
BUCKETS, CODES, CLOSINGS = 336, 24, 5
STAGES = (  # in the order of mpiserve_stage
    *("slot", "copy in", "transport", "queue", "batch", "engine"),
    *("reply", "back", "copy out", "take", "unanswered"),
)
CLOSED = ("", "rows", "census", "delay", "held")  # in the order of msi_close_reason

TIMING = np.dtype([("count", "i8"), ("sum", "i8"), ("most", "i8"), ("buckets", "u4", BUCKETS)])
STEP = np.dtype(
    [(name, "i8") for name in ("begin", "length", "requests", "waited")]
    + [("stages", "i8", len(STAGES))]
)
CLIENT = np.dtype(
    [("name", "S64")]
    + [(name, "i8") for name in ("requests", "rows", "fallbacks", "untrusted_rows", "answered")]
    + [("batch_rows", "i8"), ("batch_requests", "i8"), ("errors", "i8", CODES)]
    + [("waited", "i8"), ("waited_stages", "i8", len(STAGES)), ("least_flight", "i8")]
    + [("total", TIMING), ("stages", TIMING, len(STAGES))]
)
HEAD = np.dtype(
    [("name", "S64")]
    + [(name, "i8") for name in ("replica", "max_batch_rows", "max_delay", "max_queue_rows")]
    + [(name, "i8") for name in ("batches", "requests", "rows", "in_place", "lookups", "hits")]
    + [("closed", "i8", CLOSINGS), ("errors", "i8", CODES), ("engine", TIMING)]
)
LATE = np.dtype([("batches", "i8"), ("waited", "i8")])
PART = np.dtype(
    [("magic", "S8"), ("version", "i4"), ("bytes", "i4"), ("run", "i8")]
    + [(name, "i4") for name in ("rank", "size", "role", "node", "pid")]
    + [(name, "i4") for name in ("n_clients", "n_heads", "n_steps")]
    + [("host", "S64")]
    + [(name, "i8") for name in ("opened_at", "opened", "seen", "closed", "steps")]
    + [("all", STEP), ("current", STEP), ("step_length", TIMING), ("step_waited", TIMING)]
)


@dataclass(frozen=True)
class Part:
    """What one rank has measured.

    Attributes:
        head: Its record PART.
        clients: A record CLIENT for each service, of a simulation rank.
        heads: A record HEAD for each service, of an inference rank.
        late: For each of these a record LATE for each rank of the world.
        steps: The last time steps, in their order.
    """

    head: Any
    clients: Any
    heads: Any
    late: Any
    steps: Any

    @property
    def rank(self) -> int:
        """The rank in the world."""
        return int(self.head["rank"])

    @property
    def host(self) -> str:
        """The host of the rank."""
        return str(self.head["host"].decode())

    @property
    def seconds(self) -> float:
        """From open to close, or to the last request of a rank that has not closed."""
        end = self.head["closed"] or self.head["seen"]
        return float(end - self.head["opened"]) * 1e-9


def folder_of(file: str | Path) -> Path:
    """Return the folder of the parts of a report."""
    return Path(str(file).removesuffix(".json") + ".parts")


def read(folder: Path, run: int | None = None) -> list[Part]:
    """Read the parts of a session, in the order of the ranks; others are left out.

    Args:
        folder: Where they lie.
        run: The number of the session; None: the one that was opened last.
    """
    found = [part for path in files(folder) if (part := _read_one(path)) is not None]
    if run is None and found:
        run = int(max(found, key=lambda part: int(part.head["opened_at"])).head["run"])
    mine = {part.rank: part for part in found if part.head["run"] == run}
    return [mine[rank] for rank in sorted(mine)]


def files(folder: Path) -> Iterator[Path]:
    """Return the files of a folder that are parts; copies come after what they are copies of."""
    yield from sorted(folder.glob("rank-*.part"))
    yield from sorted(folder.glob("rank-*.part.copy"))


def run_of(path: Path) -> int | None:
    """Return the number of the session that a file is a part of; None: it is no part."""
    part = _read_one(path)
    return None if part is None else int(part.head["run"])


def _read_one(path: Path) -> Part | None:
    with suppress(OSError, ValueError):
        return parse(path.read_bytes())
    return None


def parse(data: bytes) -> Part:
    """Read a part.

    Raises:
        ValueError: If it is none, or is not whole.
    """
    head = np.frombuffer(data, PART, 1)[0]
    if head["magic"] != b"mpiserve" or head["version"] != VERSION or head["bytes"] != len(data):
        raise ValueError("no part of a profile, or of another version")
    at, found = PART.itemsize, []
    heads, size = int(head["n_heads"]), int(head["size"])
    for dtype, n in (
        (CLIENT, int(head["n_clients"])),
        (HEAD, heads),
        (LATE, heads * size),
        (STEP, int(head["n_steps"])),
    ):
        found.append(np.frombuffer(data, dtype, n, at))
        at += n * dtype.itemsize
    clients, brokers, late, steps = found
    return Part(head, clients, brokers, late.reshape(heads, size), _in_order(steps, head))


def _in_order(ring: Any, head: Any) -> Any:
    done, room = int(head["steps"]), len(ring)
    return ring[:done] if done <= room else np.roll(ring, -(done % room), 0)


# ---- times


def merge(timings: Iterable[Any]) -> Any:
    """Add records TIMING of several ranks."""
    total = np.zeros(1, TIMING)[0]
    for timing in timings:
        for name in ("count", "sum", "buckets"):
            total[name] += timing[name]
        total["most"] = max(total["most"], timing["most"])
    return total


def quantile(timing: Any, share: float) -> float:
    """Return the seconds that a share of the times is below, to an eighth."""
    wanted, before = share * float(timing["count"]), 0.0
    for at in np.flatnonzero(timing["buckets"]):
        count = float(timing["buckets"][at])
        if before + count >= wanted:
            low, width = _bounds(int(at))
            value = low + width * (wanted - before) / count
            return min(value, float(timing["most"])) * 1e-9
        before += count
    return float(timing["most"]) * 1e-9


def _bounds(bucket: int) -> tuple[float, float]:
    """Return where a bucket begins, and its width, in nanoseconds."""
    octave, sub = bucket >> SUB_BITS, bucket & ((1 << SUB_BITS) - 1)
    if not octave:
        return float(bucket), 1.0
    width = 2.0 ** (octave - 1)
    return ((1 << SUB_BITS) + sub) * width, width


def figures(timing: Any) -> dict[str, float]:
    """Describe times: count, sum, and p50, p99 and max in seconds."""
    count, total = int(timing["count"]), float(timing["sum"]) * 1e-9
    if not count:
        return {"count": 0, "sum": 0.0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    return {
        "count": count,
        "sum": total,
        "p50": quantile(timing, 0.5),
        "p99": quantile(timing, 0.99),
        "max": float(timing["most"]) * 1e-9,
    }


def codes(counts: Any) -> dict[str, int]:
    """Name the errors that were counted."""
    known = {-code.value: code.name for code in Code if code.value < 0}
    return {known.get(int(at), "other"): int(counts[at]) for at in np.flatnonzero(counts)}
