"""Find the ranks of running jobs of this user on this node, and read what they show.

What they show is laid out by csrc/base/metrics.h and csrc/head/shown.c. Reading costs them nothing.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiserve.errors import Code
from mpiserve.observe.parts import Part, parse

VERSION = 1
MAGIC = b"msi-rank"
LINK = "/memfd:mpiserve-rank"  # what /proc calls memory that ranks show
ROLES = ("simulation", "inference", "gateway", "trainer")  # in the order of mpiserve_role
WAITS = 0.02  # seconds without a sign after which a rank waits no longer: it gives one each 1 ms

COUNTERS = (  # in the order of mpiserve_counters
    *("requests", "rows", "errors", "batches", "batches_in_place", "closed_by_rows"),
    *("closed_by_census", "closed_by_delay", "rejected", "dropped", "cancelled"),
    *("rma_operations", "rma_to_simulation", "thread_polls", "engine_batches", "batch_calls"),
    *("fallbacks", "failed_rows", "rerouted", "local_answers", "untrusted_rows"),
    *("paced_steps", "paced_age_sum", "paced_age_max"),
    *("cache_lookups", "cache_hits", "cached_requests"),
)
STATES = (  # in the order of mpiserve_state
    *("launched", "loading", "ready", "busy"),
    *("suspended", "restarting", "failed", "gone"),
)

PLACEMENT = (  # in the order of mpiserve_placement
    *("side", "breaker", "local_rows", "remote_rows", "returned_rows", "changes", "opened"),
    *("local_call_ns", "local_row_ns", "remote_call_ns", "remote_row_ns"),
)
SIDES = ("", "local", "remote")  # mpiserve_side; the first one: the service has one model
BREAKER = ("closed", "open", "half-open")

FIELD = np.dtype([("name", "S24"), ("at", "i4"), ("bytes", "i4")])
METRICS = np.dtype(
    [("magic", "S8"), ("library", "S24"), ("version", "i4"), ("bytes", "i4"), ("run", "i8")]
    + [(name, "i4") for name in ("rank", "size", "role", "node", "pid", "part_fd")]
    + [("host", "S64")]
    + [(name, "i8") for name in ("since_1970", "launched", "opened", "closed")]
    + [("counters", "i8", len(COUNTERS))]
    + [(name, "i8") for name in ("waits_since", "waits_seen", "waits_for")]
    + [(name, "i4") for name in ("services_fd", "n_services", "record_bytes", "n_fields")]
    + [("fields", FIELD, 40)]
)

Service = dict[str, Any]


@dataclass(frozen=True)
class Rank:
    """What one rank shows, at one moment.

    Attributes:
        head: Its record METRICS.
        pid: Its process, as this process numbers it.
        lives: Whether the process is there, and its session is open.
        services: The numbers of each of its services, of an inference rank that has published: the
            fields of csrc/head/shown.c, with counters and placement as dicts, and states by name.
        part: What it has measured; None: nothing is measured.
        seen: When it was read, in nanoseconds of the monotonic clock.
    """

    head: Any
    pid: int
    lives: bool
    services: Sequence[Service]
    part: Part | None
    seen: int

    @property
    def run(self) -> int:
        """The number of its session."""
        return int(self.head["run"])

    @property
    def rank(self) -> int:
        """The rank in the world."""
        return int(self.head["rank"])

    @property
    def role(self) -> str:
        """One of ROLES."""
        return ROLES[int(self.head["role"])]

    @property
    def is_client(self) -> bool:
        """Whether it sends requests."""
        return self.role != "inference"

    @property
    def is_loading(self) -> bool:
        """Whether it is an inference rank that has not published its services yet."""
        return not self.is_client and bool(self.head["services_fd"] < 0)

    @property
    def counters(self) -> dict[str, int]:
        """The counters of a rank that sends requests."""
        return _counters(self.head["counters"])

    @property
    def opened(self) -> float:
        """When its session was opened, in seconds since 1970."""
        return float(self.head["opened"] + self.head["since_1970"]) * 1e-9

    @property
    def waits(self) -> float:
        """For how many seconds a simulation rank has waited for a reply; 0: it does not wait.

        Waits of some microseconds cannot be seen.
        """
        if not self.lives or self.seen - self.head["waits_seen"] > WAITS * 1e9:
            return 0.0
        until = min(self.seen, int(self.head["waits_seen"]))  # later it may have ended
        return max(0.0, float(until - self.head["waits_since"]) * 1e-9)


@dataclass(frozen=True)
class Foreign:
    """A rank of a job with another version of mpiserve, which cannot be read."""

    pid: int
    library: str


def _counters(values: Any) -> dict[str, int]:
    return dict(zip(COUNTERS, map(int, values), strict=True))


# ---- one rank


@dataclass
class _Open:
    """The memory of a rank, mapped: it can be read when the rank has ended, too."""

    pid: int
    page: mmap.mmap
    services: mmap.mmap | None = None
    part: mmap.mmap | None = None
    lives: bool = True

    def read(self) -> Rank:
        head = self._head()
        if self.services is None and head["services_fd"] >= 0:
            self.services = _map(self.pid, int(head["services_fd"]))
            # What the descriptor says is there was written before it. A copy that is made at that
            # moment may have the descriptor and not the rest: it reads in any order.
            head = self._head()
        if self.part is None and head["part_fd"] >= 0:
            self.part = _map(self.pid, int(head["part_fd"]))
        services = _services(head, self.services) if self.services else ()
        lives = self.lives and not head["closed"]
        return Rank(head, self.pid, lives, services, self._part(), time.monotonic_ns())

    def _head(self) -> Any:
        return np.frombuffer(self.page[: METRICS.itemsize], METRICS, 1)[0]

    def _part(self) -> Part | None:
        if self.part is None:
            return None
        size = int.from_bytes(self.part[12:16], sys.byteorder)
        with suppress(ValueError):  # it is being made
            return parse(self.part[:size])
        return None


def _map(pid: int, fd: int) -> mmap.mmap | None:
    """Map memory that a process shows; None: the process has ended, or is not this user's."""
    try:
        file = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return mmap.mmap(file, 0, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)


def _own_number(pid: int) -> int:
    """Return the number by which a process knows itself, in a container too."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        numbers = [line for line in file if line.startswith("NSpid:")]
    return int(numbers[0].split()[-1]) if numbers else pid


def _is_alive(pid: int) -> bool:
    """Return whether a process is there; one that has ended, but for its parent, is not."""
    try:
        return bool(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _services(head: Any, memory: mmap.mmap) -> list[Service]:
    fields = head["fields"][: int(head["n_fields"])]
    size = int(head["record_bytes"])
    records = range(0, int(head["n_services"]) * size, size)
    found = [_service(memory[at : at + size], fields) for at in records]
    # A follower publishes that it answers nobody.
    return [service for service in found if service["error"] != Code.ESTATE]


def _service(record: bytes, fields: Any) -> Service:
    found: Service = {"placement": None}  # which other libraries of this layout do not show
    for name, at, size in fields:
        value = record[at : at + size]
        if name == b"name":
            found["name"] = value.split(b"\0")[0].decode(errors="replace")
        elif name == b"counters":
            found["counters"] = _counters(np.frombuffer(value, "i8"))
        elif name == b"placement":
            found["placement"] = _placement(np.frombuffer(value, "i8"))
        else:
            found[name.decode()] = int.from_bytes(value, sys.byteorder, signed=size == 8)
    busy = found["state"] == STATES.index("ready") and (found["batch_open"] or found["held"])
    found["state"] = "busy" if busy else STATES[found["state"]]
    return found


def _placement(values: Any) -> dict[str, Any] | None:
    """Where a service with a local and a remote model is answered; None: it has one model."""
    found: dict[str, Any] = dict(zip(PLACEMENT, map(int, values), strict=True))
    if not found["side"]:
        return None
    return found | {"side": SIDES[found["side"]], "breaker": BREAKER[found["breaker"]]}


def placements(run: int) -> dict[str, list[dict[str, Any]]]:
    """Return where the services of a session are answered, by name: of each replica on this node.

    Services with one model are left out.
    """
    ranks = Ranks(run)
    ranks.find()
    found: dict[str, list[dict[str, Any]]] = {}
    for rank in ranks.read():
        for service in rank.services:
            if service["placement"]:
                found.setdefault(service["name"], []).append(service["placement"])
    return found


# ---- all ranks of this node


def allow_many() -> None:
    """Let this process have a descriptor of each memory of many ranks: up to three a rank."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass
class Ranks:
    """The ranks of the jobs of this user on this node.

    Args:
        run: The number of a session, to leave out others; None: all.
        kept: Whether ranks that have ended stay, as they were.
    """

    run: int | None = None
    kept: bool = False
    foreign: list[Foreign] = field(default_factory=list)
    _open: dict[int, _Open] = field(default_factory=dict)  # by the inodes of their pages

    def find(self) -> None:
        """Look for ranks that are new, and for those that have ended. Reads all of /proc."""
        self.foreign = []
        for pid, fd in shown():
            with suppress(OSError):  # it has ended
                self._add(pid, fd)
        self.bury()

    def bury(self) -> None:
        """Note which ranks have ended."""
        for inode, rank in list(self._open.items()):
            rank.lives = rank.lives and _is_alive(rank.pid)
            if not (self.kept or rank.lives):
                del self._open[inode]

    def read(self) -> list[Rank]:
        """Read all ranks that were found, in the order of their jobs and in the world."""
        ranks = [rank.read() for rank in self._open.values()]
        if not self.kept:
            ranks = [rank for rank in ranks if rank.lives]
        begun: dict[int, float] = {}
        for rank in ranks:
            begun[rank.run] = min(rank.opened, begun.get(rank.run, rank.opened))
        return sorted(ranks, key=lambda rank: (begun[rank.run], rank.run, rank.rank))

    def _add(self, pid: int, fd: int) -> None:
        inode = os.stat(f"/proc/{pid}/fd/{fd}").st_ino
        if inode in self._open or (page := _map(pid, fd)) is None:
            return
        if len(page) < 40 or page[: len(MAGIC)] != MAGIC:
            return
        version, size = np.frombuffer(page[32:40], "i4")
        if version != VERSION or size != METRICS.itemsize or len(page) < METRICS.itemsize:
            self.foreign.append(Foreign(pid, page[8:32].split(b"\0")[0].decode(errors="replace")))
            return
        head = np.frombuffer(page[: METRICS.itemsize], METRICS, 1)[0]
        # A process that a rank has forked has its descriptors too.
        if self.run in (None, int(head["run"])) and _own_number(pid) == head["pid"]:
            self._open[inode] = _Open(pid, page)


def shown(proc: Path = Path("/proc")) -> Iterator[tuple[int, int]]:
    """List process and descriptor of all memory that ranks of this user show."""
    own = os.getuid()
    for name in sorted((name for name in os.listdir(proc) if name.isdigit()), key=int):
        with suppress(OSError):  # it has ended, or is not this user's
            if os.stat(proc / name).st_uid == own:
                yield from ((int(name), fd) for fd in _shown(proc / name / "fd"))


def _shown(folder: Path) -> Iterator[int]:
    for fd in os.listdir(folder):
        with suppress(OSError):  # it was closed meanwhile; those after it count
            if os.readlink(folder / fd).startswith(LINK):
                yield int(fd)
