"""What the gateway has answered, as the protocol's statistics."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Counts:
    """Of one service; times in nanoseconds."""

    last: int = 0  # milliseconds since 1970
    rows: int = 0
    answered: int = 0
    failed: int = 0
    answered_ns: int = 0
    failed_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0

    def table(self, name: str, version: str, executions: int) -> dict[str, Any]:
        """Return the protocol's table."""
        nothing = {"count": 0, "ns": 0}
        inference = {
            "success": {"count": self.answered, "ns": self.answered_ns},
            "fail": {"count": self.failed, "ns": self.failed_ns},
            "queue": {"count": self.answered, "ns": self.queue_ns},
            "compute_input": nothing,
            "compute_infer": {"count": self.answered, "ns": self.compute_ns},
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        }
        return {
            "name": name,
            "version": version,
            "last_inference": self.last,
            "inference_count": self.rows,
            "execution_count": executions,
            "inference_stats": inference,
            "batch_stats": [],
        }


class Measured:
    """One request under way."""

    rows, queue_ns, compute_ns = 0, 0, 0

    def answered(self, rows: int, stats: Any) -> None:
        """Note the answer: its rows, and the statistics of the job."""
        self.rows = rows
        self.queue_ns, self.compute_ns = stats["queue_ns"], stats["compute_ns"]


class Statistics:
    """The counts of all services, since this process began."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)

    @contextmanager
    def request(self, name: str) -> Iterator[Measured]:
        """Measure a request of a service, which fails if the block raises."""
        counts, measured, begin = self._counts[name], Measured(), time.perf_counter_ns()
        try:
            yield measured
        except BaseException:
            counts.failed += 1
            counts.failed_ns += time.perf_counter_ns() - begin
            raise
        counts.answered += 1
        counts.answered_ns += time.perf_counter_ns() - begin
        counts.rows += measured.rows
        counts.queue_ns += measured.queue_ns
        counts.compute_ns += measured.compute_ns
        counts.last = time.time_ns() // 1_000_000

    def table(self, name: str, version: str, executions: int) -> dict[str, Any]:
        """Return the protocol's table of a service."""
        return self._counts[name].table(name, version, executions)
