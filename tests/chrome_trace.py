"""A parser of Chrome JSON that is as strict as Perfetto's: what `trace merge` has written."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NS = 0.0015  # of microseconds: begins and lengths are rounded


@dataclass
class Found:
    """What is in a file.

    Attributes:
        processes: Names by rank.
        threads: Names by rank and thread.
        spans: By rank.
        flows: Of each the three events.
        instants: By rank.
    """

    processes: dict[int, str]
    threads: dict[tuple[int, int], str]
    spans: dict[int, list[dict[str, Any]]]
    flows: list[list[dict[str, Any]]]
    instants: dict[int, list[dict[str, Any]]]

    def named(self, rank: int, name: str) -> list[dict[str, Any]]:
        """Return the spans of a rank that have a name."""
        return [span for span in self.spans[rank] if span["name"] == name]


def parse(path: Path) -> Found:
    """Read a file, and check all that a viewer relies on."""
    events = json.loads(path.read_text())["traceEvents"]
    assert events and all(isinstance(event["pid"], int) and event["pid"] >= 1 for event in events)
    named = [event for event in events if event["ph"] == "M"]
    names = {kind: [event for event in named if event["name"] == kind] for kind in KINDS}
    found = Found(
        {event["pid"] - 1: event["args"]["name"] for event in names["process_name"]},
        {(e["pid"] - 1, e["tid"]): e["args"]["name"] for e in names["thread_name"]},
        defaultdict(list),
        [],
        defaultdict(list),
    )
    assert len(found.processes) == len(names["process_name"])
    tracks, flows = defaultdict(list), defaultdict(list)
    for event in events:
        if event["ph"] in "Xi":
            kind = found.spans if event["ph"] == "X" else found.instants
            kind[event["pid"] - 1].append(event)
        if event["ph"] == "X":
            assert event["dur"] > 0 and event["ts"] >= 0
            tracks[event["pid"] - 1, event["tid"]].append(event)
        elif event["ph"] in "stf":
            flows[event["id"]].append(event)
    assert set(tracks) <= set(found.threads)
    for spans in tracks.values():
        check_nesting(spans)
    for flow in flows.values():
        check_flow(flow, tracks)
        found.flows.append(flow)
    return found


KINDS = ("process_name", "thread_name")


def check_nesting(spans):
    """Spans of a thread are one within the other, or one after the other."""
    open_until: list[float] = []
    for span in sorted(spans, key=lambda one: (one["ts"], -one["dur"])):
        while open_until and open_until[-1] <= span["ts"] + NS:
            open_until.pop()
        end = span["ts"] + span["dur"]
        assert not open_until or end <= open_until[-1] + NS, span
        open_until.append(end)


def check_flow(flow, tracks):
    """From the request to its batch and back, forward in time, each end in a span."""
    assert [event["ph"] for event in flow] == ["s", "t", "f"], flow
    times = [event["ts"] for event in flow]
    assert times == sorted(times), flow
    assert flow[0]["pid"] == flow[2]["pid"] != flow[1]["pid"], flow
    assert flow[0]["tid"] == flow[2]["tid"], flow
    for event, name in zip(flow, ("request", "batch", "request"), strict=True):
        around = [
            span
            for span in tracks[event["pid"] - 1, event["tid"]]
            if span["ts"] - NS <= event["ts"] <= span["ts"] + span["dur"] + NS
        ]
        assert any(span["name"].startswith(name) for span in around), (event, around)
