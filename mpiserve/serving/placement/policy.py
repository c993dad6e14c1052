"""The choice between a local and a remote model."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from mpiserve.serving.placement.cost import Cost

LOCAL, REMOTE = "local", "remote"
BETTER = 0.8  # of the seconds of this side, that the other one must need for a change
GAIN = 0.9  # of the seconds of the better side alone, that a split must need
PROBES = 20  # a probe of the local model, which delays answers, comes at most every 20 of its own
OVERDUE = 3  # times of what it should take, after which a remote request goes to the local model
LEAST = 0.02  # seconds that it may take in any case


class Work(NamedTuple):
    """What is to be answered.

    Attributes:
        rows: Those of the batch.
        requests: Those of the batch.
        queued: Rows that wait for the next batches.
        under_way: Requests that the servers have.
        oldest: For how many seconds they have had the oldest one.
    """

    rows: int
    requests: int
    queued: int = 0
    under_way: int = 0
    oldest: float = 0.0


class Policy:
    """Chooses a side for each batch, by what both have cost lately.

    Args:
        placement: "local", "remote", "auto" or "split".
        connections: The most requests that the servers have at a time.
        most: The most rows of a batch.
        probe_s: Seconds between two probes of the side that does not answer, and the least
            between two changes.

    Attributes:
        local: What the local model costs, by rows of a batch.
        remote: What a request to the servers costs, by its rows.
        side: The side that answers: LOCAL or REMOTE.
        changes: How often it has changed.
        why: The last change, in words.
    """

    def __init__(self, placement: str, connections: int, most: int, probe_s: float) -> None:
        self.placement = placement
        self._connections, self._most, self._probe_s = connections, most, probe_s
        self.local, self.remote = Cost(), Cost()
        self.side = REMOTE if placement == REMOTE else LOCAL
        self.changes, self.why = 0, ""
        self._changed = self._probe_at = float("-inf")
        self._probed_at_cost = 0.0

    # ---- the side

    def choose(self, work: Work, now: float, local: bool, remote: bool) -> str:
        """Choose a side.

        Args:
            work: What is to be answered.
            now: The time.
            local: Whether the local model can answer.
            remote: Whether the servers can.
        """
        if not (local and remote):
            only = REMOTE if remote else LOCAL
            why = f"the {LOCAL if only == REMOTE else REMOTE} model cannot"
            return self._enter(only, why if local or remote else "neither model is available", now)
        if self.placement in (LOCAL, REMOTE):
            return self._enter(self.placement, "both can", now)
        if self._measured and now - self._changed >= self._probe_s:
            here, there = self.cost_here(work), self.cost_there(work)
            mine, other = (here, there) if self.side == LOCAL else (there, here)
            if other < BETTER * mine:
                why = f"{work.rows + work.queued} rows: {_ms(here)} here, {_ms(there)} there"
                self._enter(LOCAL if self.side == REMOTE else REMOTE, why, now)
        elif not self._measured and self.side == REMOTE:  # the local model was away
            self._enter(LOCAL, "it is available again, and is measured", now)
        return self.side

    @property
    def _measured(self) -> bool:
        return self.local.known and self.remote.known

    def cost_here(self, work: Work) -> float:
        """Estimate the seconds until the local model has answered all that is there."""
        rows = work.rows + work.queued
        batches = max(1, ceil(rows / self._most))
        return batches * self.local.seconds(rows / batches)

    def cost_there(self, work: Work) -> float:
        """Estimate the seconds until the servers have answered all that is there."""
        size = work.rows / max(1, work.requests)
        requests = work.under_way + work.requests + work.queued / max(1.0, size)
        one = max(self.remote.seconds(size), work.oldest)
        return one * max(1, ceil(requests / self._connections))

    def _enter(self, side: str, why: str, now: float) -> str:
        if side != self.side:
            self.side, self._changed, self.why = side, now, why
            self._probe_at = now + self._probe_s
            mine = self.local if side == LOCAL else self.remote
            self._probed_at_cost = mine.seconds(1)
            self.changes += 1
        return side

    def nanoseconds(self) -> tuple[int, ...]:
        """Return what a call and a row cost at the local model, then at the servers, as known."""
        here, there = self.local, self.remote
        return tuple(round(1e9 * s) for s in (here.call, here.row, there.call, there.row))

    # ---- a part of a batch

    def split(self, work: Work) -> int:
        """Return how many rows of a batch the servers should get so that it ends soonest."""
        if self.placement != "split" or not self._measured or work.rows < 2:
            return work.rows if self.side == REMOTE else 0
        here, there, rows = self.local, self.remote, work.rows
        slope = max(here.row + there.row, 1e-12)
        share = round((here.call + here.row * rows - there.call) / slope)
        share = min(max(share, 1), rows - 1)
        both = max(here.seconds(rows - share), there.seconds(share), work.oldest)
        alone = min(here.seconds(rows), max(there.seconds(rows), work.oldest))
        if both < GAIN * alone:
            return share
        return rows if self.side == REMOTE else 0

    # ---- probes

    def probe(self, now: float) -> bool:
        """Whether the side that does not answer should be measured now; if so, it counts as.

        It is when the last time is long ago, or when the other side has become slower since.
        """
        mine = self.local if self.side == LOCAL else self.remote
        slower = BETTER * mine.seconds(1) > self._probed_at_cost
        if self.placement in (LOCAL, REMOTE) or not (slower or now >= self._probe_at):
            return False
        pause = self._probe_s
        if self.side == REMOTE and self.local.known:
            pause = max(pause, PROBES * self.local.seconds(1))
        self._probe_at, self._probed_at_cost = now + pause, mine.seconds(1)
        return True

    def limit(self, rows: int) -> float:
        """Return the seconds after which a remote request goes to the local model, too."""
        if self.placement in (LOCAL, REMOTE) or not self._measured:
            return float("inf")
        here, there = self.local.seconds(rows), self.remote.seconds(rows)
        return max(OVERDUE * there, 2 * here, LEAST)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
