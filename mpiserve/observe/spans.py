"""What the ranks of a traced session did: requests, batches and the rest, by one clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiserve.observe.parts import STAGES
from mpiserve.observe.trace import Trace

REQUEST, BATCH, STEP, STATE, CHANGE, MOVED = range(1, 7)  # msi_event_kind
LATE, ANSWERED, SAME_CLOCK, SOURCE = 1, 2, 4, 16  # flags of a request
SOURCES = ("model", "local model", "fallback")  # mpiserve_source
STATES = ("launched", "loading", "ready", "busy", "suspended", "restarting", "failed", "gone")
CHANGES = ("", "load", "swap", "drop", "unload", "start", "stop", "replace")  # mpiserve_change
# What the times of a request are, and those of a batch.
SUBMITTED, BEGUN, SENT, SEEN, ENDED, ENTERED, RETURNED = range(7)
TAKEN, FREE, CLOSED, GATHERED, COMPUTED, REPLIED = range(7, 13)
FIRST_TAKEN, LAST_TAKEN, HEAD_FREE, B_CLOSED, B_GATHERED, B_COMPUTED, B_REPLIED, B_ENDED = range(8)
# From one point of a request to the next one: as add_answered() of csrc/base/profile.c.
POINT_STAGES = tuple(
    STAGES.index(name)
    for name in ("slot", "copy in", "queue", "transport", "queue", "batch", "copy in")
    + ("engine", "reply", "take", "back", "copy out", "take")
)


# ---- requests


def points(trace: Trace, requests: Any, others: dict[int, Trace]) -> Any:
    """Return when each request came from one stage to the next, by the clock of rank 0.

    The stage between the points i and i + 1 is POINT_STAGES[i]. The times of heads are put between
    those of the client, as find_points() of csrc/base/profile.c does, and for its reasons.

    Args:
        trace: Of the client.
        requests: Its events REQUEST that a head has answered.
        others: The traces of the world, by rank.
    """
    mine = trace.aligned(requests["times"][:, :TAKEN])
    head = _head_times(trace, requests, mine, others)
    at = {name: head[:, name - TAKEN] for name in range(TAKEN, REPLIED + 1)}
    sent, seen = mine[:, SENT], mine[:, SEEN]
    p: list[Any] = [mine[:, SUBMITTED], mine[:, BEGUN], sent]
    taken = _between(sent, at[TAKEN], seen)
    p += [_between(sent, at[FREE], taken), taken]
    closed = _between(taken, at[CLOSED], seen)
    p += [_between(taken, at[FREE], closed), closed]
    for name in (GATHERED, COMPUTED, REPLIED):
        p.append(_between(p[-1], at[name], seen))
    p.append(_between(p[-1], mine[:, ENTERED], seen))
    return np.stack([*p, seen, mine[:, ENDED], mine[:, RETURNED]], 1)


def _between(low: Any, value: Any, high: Any) -> Any:
    return np.maximum(low, np.minimum(value, np.maximum(low, high)))


def _head_times(trace: Trace, requests: Any, mine: Any, others: dict[int, Trace]) -> Any:
    times = requests["times"][:, TAKEN:]
    found = np.zeros_like(times)
    for peer in np.unique(requests["peer"]):
        rows = requests["peer"] == peer
        if int(peer) in others:
            found[rows] = others[int(peer)].aligned(times[rows])
        else:
            found[rows] = _by_midpoint(trace, requests[rows], mine[rows])
    return found


def _by_midpoint(trace: Trace, requests: Any, mine: Any) -> Any:
    """Without the head's own trace its clock is not known: both ways take the same time."""
    times = requests["times"]
    flight = mine[:, SEEN] - mine[:, SENT] - (times[:, REPLIED] - times[:, TAKEN])
    there = mine[:, SENT] + np.maximum(flight, 0) // 2 - times[:, TAKEN]
    near = (requests["flags"] & SAME_CLOCK).astype(bool)
    shift = np.where(near, trace.shift(times[:, TAKEN]), there)
    return times[:, TAKEN:] + shift[:, None]


@dataclass(frozen=True)
class Request:
    """A request, by the clock of rank 0, in nanoseconds.

    Attributes:
        trace: Of its client.
        event: Its record EVENT.
        spans: Its stages: (stage, begin, end), without gaps.
        answered: Whether a head has answered it.
        key: Names its batch: (rank of the head, service, closed by its clock); of one that a head
            has answered.
    """

    trace: Trace
    event: Any
    spans: tuple[tuple[str, int, int], ...]
    answered: bool
    key: tuple[int, str, int]

    @property
    def begin(self) -> int:
        """When it was submitted."""
        return self.spans[0][1] if self.spans else int(self.trace.aligned(self._times[SUBMITTED]))

    @property
    def end(self) -> int:
        """When its caller had the results."""
        return self.spans[-1][2] if self.spans else self.begin

    @property
    def sent(self) -> int:
        """When it was sent."""
        return int(self.trace.aligned(self._times[SENT]))

    @property
    def seen(self) -> int:
        """When its client saw the reply."""
        return int(self.trace.aligned(self._times[SEEN]))

    @property
    def service(self) -> str:
        """The name of its service."""
        return self.trace.name(self.event)

    @property
    def source(self) -> str:
        """What has answered it."""
        at = int(self.event["flags"]) // SOURCE
        return SOURCES[at] if at < len(SOURCES) else "?"

    @property
    def _times(self) -> Any:
        return self.event["times"]


def requests(traces: Sequence[Trace]) -> Iterator[Request]:
    """Return the requests of all ranks, rank by rank, in the order in which they ended."""
    others = {trace.rank: trace for trace in traces}
    for trace in traces:
        events = trace.of(REQUEST)
        answered = (events["flags"] & ANSWERED).astype(bool)
        every: list[Any] = [None] * len(events)
        if answered.any():
            found = points(trace, events[answered], others).tolist()
            for at, one in zip(np.flatnonzero(answered), found, strict=True):
                every[at] = _spans(one)
        for event, spans, is_answered in zip(events, every, answered.tolist(), strict=True):
            key = (int(event["peer"]), trace.name(event), int(event["times"][CLOSED]))
            spans = spans if is_answered else _unanswered(trace, event)
            yield Request(trace, event, spans, is_answered, key)


def _spans(at: list[int]) -> tuple[tuple[str, int, int], ...]:
    """Stages of no length are left out, and neighbours of one stage become one."""
    spans: list[tuple[str, int, int]] = []
    for i, stage in enumerate(POINT_STAGES):
        name = STAGES[stage]
        if at[i + 1] <= at[i]:
            continue
        if spans and spans[-1][0] == name and spans[-1][2] == at[i]:
            spans[-1] = (name, spans[-1][1], at[i + 1])
        else:
            spans.append((name, at[i], at[i + 1]))
    return tuple(spans)


def _unanswered(trace: Trace, event: Any) -> tuple[tuple[str, int, int], ...]:
    """As add_unanswered() of csrc/base/profile.c."""
    at = trace.aligned(event["times"][:TAKEN]).tolist()
    sent = at[SENT] or at[RETURNED]
    begun = at[BEGUN] if at[SENT] else at[RETURNED]
    named = (("slot", at[SUBMITTED], begun), ("copy in", begun, sent))
    spans = [*named, ("unanswered", sent, at[RETURNED])]
    return tuple(span for span in spans if span[2] > span[1])


# ---- batches


@dataclass(frozen=True)
class Batch:
    """A batch, by the clock of rank 0, in nanoseconds.

    Attributes:
        trace: Of its head.
        event: Its record EVENT.
        key: As of its requests.
        begin: When it was closed.
        end: When all of its requests were answered, or held.
        spans: Its stages: (stage, begin, end).
        waited: How long its last request came after the one that came first, or after the head was
            free, in nanoseconds.
    """

    trace: Trace
    event: Any
    key: tuple[int, str, int]
    begin: int
    end: int
    spans: tuple[tuple[str, int, int], ...]
    waited: int

    @property
    def last(self) -> int:
        """The rank of the world that came last."""
        return int(self.event["peer"])


def batches(traces: Sequence[Trace]) -> Iterator[Batch]:
    """Return the batches of all heads, rank by rank, in the order in which they ended."""
    for trace in traces:
        events = trace.of(BATCH)
        times = trace.aligned(events["times"][:, : B_ENDED + 1]).tolist()
        for event, at in zip(events, times, strict=True):
            key = (trace.rank, trace.name(event), int(event["times"][B_CLOSED]))
            marks = [at[B_CLOSED]]
            for name in (B_GATHERED, B_COMPUTED, B_REPLIED):
                marks.append(max(marks[-1], min(at[name] or at[B_ENDED], at[B_ENDED])))
            stages = zip(("copy in", "engine", "reply"), marks, marks[1:], strict=False)
            spans = tuple((stage, a, b) for stage, a, b in stages if b > a)
            from_ns = max(at[FIRST_TAKEN], at[HEAD_FREE])
            waited = max(0, at[LAST_TAKEN] - from_ns) if event["requests"] > 1 else 0
            yield Batch(trace, event, key, marks[0], max(marks[-1], at[B_ENDED]), spans, waited)


# ---- steps, and the life of replicas


@dataclass(frozen=True)
class Moment:
    """Something else that a rank did, by the clock of rank 0, in nanoseconds.

    Attributes:
        trace: Of the rank.
        event: Its record EVENT: a STEP, STATE, CHANGE or MOVED.
        begin: When it began.
        end: When it ended: the same, of what takes no time.
        text: What it was.
    """

    trace: Trace
    event: Any
    begin: int
    end: int
    text: str


def moments(traces: Sequence[Trace]) -> Iterator[Moment]:
    """Return time steps, and events of the life of replicas, rank by rank."""
    for trace in traces:
        for event in trace.events[~np.isin(trace.events["kind"], (REQUEST, BATCH))]:
            begin, end = trace.aligned(event["times"][:2]).tolist()
            spans = event["kind"] in (STEP, CHANGE)
            yield Moment(trace, event, begin, end if spans else begin, _text(trace, event))


def _text(trace: Trace, event: Any) -> str:
    kind, flags, service = int(event["kind"]), int(event["flags"]), trace.name(event)
    if kind == STEP:
        return "time step"
    if kind == STATE:
        return f"{service}: {STATES[flags] if flags < len(STATES) else flags}"
    if kind == MOVED:
        return f"{service}: from rank {event['requests']} to rank {event['peer']}"
    what = CHANGES[flags] if flags < len(CHANGES) else str(flags)
    failed = f" failed ({event['code']})" if event["code"] else ""
    return f"{service}: {what} {_version_of(event)}".rstrip() + failed


def _version_of(event: Any) -> str:
    """Return the version of a change."""
    return event["times"].tobytes()[16:].split(b"\0")[0].decode(errors="replace")
