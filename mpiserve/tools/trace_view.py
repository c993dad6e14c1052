"""Say in a few lines what a trace holds, and which requests took longest, and why."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from mpiserve.observe.spans import (
    BATCH,
    REQUEST,
    STEP,
    Batch,
    Moment,
    Request,
    batches,
    moments,
    requests,
)
from mpiserve.observe.summary import columns, duration, shares
from mpiserve.observe.trace import Trace, lost
from mpiserve.tools.trace_chrome import start_of

NS = 1e-9
MOMENTS = 20  # that are listed
SHARE = 0.1  # of its time, that a request must have waited for a rank to name it


def text(traces: Sequence[Trace], slowest: int = 10) -> str:
    """Describe a trace.

    Args:
        traces: Of the ranks; at least one.
        slowest: How many requests are listed.
    """
    zero = start_of(traces)
    lines = [_heading(traces), *_lost(traces), *_clocks(traces)]
    worst = heapq.nlargest(slowest, requests(traces), key=lambda one: one.end - one.begin)
    if worst:
        keys = {one.key for one in worst}
        theirs = {batch.key: batch for batch in batches(traces) if batch.key in keys}
        rows: list[tuple[str, ...]] = [
            ("at", "service", "rank", "took", "in batch", "mostly", "waited for")
        ]
        rows += [_row(one, theirs.get(one.key), zero) for one in worst]
        lines += ["", "slowest requests", *columns(rows)]
    life = [one for one in moments(traces) if one.event["kind"] != STEP]
    if life:
        lines += ["", "life of the replicas", *_life(life, zero)]
    return "\n".join(lines)


def _heading(traces: Sequence[Trace]) -> str:
    size, hosts = int(traces[0].head["size"]), len({trace.host for trace in traces})
    found = [sum(len(trace.of(kind)) for trace in traces) for kind in (REQUEST, BATCH, STEP)]
    counts = f"{found[0]} requests, {found[1]} batches, {found[2]} time steps"
    return f"a trace of {len(traces)} of {size} ranks, on {hosts} host(s): {counts}"


def _lost(traces: Sequence[Trace]) -> list[str]:
    there = {trace.rank for trace in traces}
    missing = [rank for rank in range(int(traces[0].head["size"])) if rank not in there]
    lines = [line] if (line := lost([trace.head for trace in traces])) else []
    if missing:
        ranks = ", ".join(map(str, missing[:16]))
        lines.append(f"nothing is known here of ranks {ranks}: is their folder on another host?")
    return lines


def _clocks(traces: Sequence[Trace]) -> list[str]:
    """How well the clocks of other nodes are known; a line for each node."""
    lines: dict[int, str] = {}
    for trace in traces:
        first, last = trace.head["clocks"]
        node = int(trace.head["node"])
        if node == 0 or node in lines:
            continue
        text = f"the clock of {trace.host} was not measured"
        if first["at"]:
            text = f"the clock of {trace.host} is known to {_half(first)} at open"
            text += f" and {_half(last)} at close" if last["at"] else "; there was no close"
        lines[node] = text
    return [lines[node] for node in sorted(lines)]


def _half(clock: Any) -> str:
    return duration(float(clock["round_trip"]) * NS / 2)


def _row(one: Request, batch: Batch | None, zero: int) -> tuple[str, ...]:
    times: dict[str, float] = {}
    for stage, begin, end in one.spans:
        times[stage] = times.get(stage, 0.0) + (end - begin) * NS
    whole = f"{one.event['requests']} at rank {one.event['peer']}" if one.answered else "-"
    where = [f"{(one.begin - zero) * NS:.4f} s", one.service, str(one.trace.rank)]
    return (
        *where,
        duration((one.end - one.begin) * NS),
        whole,
        shares(times, 3),
        _whom(one, batch),
    )


def _whom(one: Request, batch: Batch | None) -> str:
    """The rank whose request came last, if that is another one, and took a share of this time."""
    if batch is None or batch.last == one.trace.rank:
        return "-"
    late = batch.waited > SHARE * (one.end - one.begin)
    return f"rank {batch.last}, {duration(batch.waited * NS)}" if late else "-"


def _life(found: Sequence[Moment], zero: int) -> list[str]:
    order = sorted(found, key=lambda one: one.begin)
    lines = [
        f"  {(one.begin - zero) * NS:.4f} s  rank {one.trace.rank}  {one.text}"
        + (f", {duration((one.end - one.begin) * NS)}" if one.end > one.begin else "")
        for one in order[:MOMENTS]
    ]
    return lines + [f"  and {len(found) - MOMENTS} more"] * (len(found) > MOMENTS)
