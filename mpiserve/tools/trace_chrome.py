"""Write a trace as Chrome JSON, which Perfetto and chrome://tracing show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from mpiserve.observe.parts import CLOSED
from mpiserve.observe.spans import SOURCES, STEP, Batch, Moment, Request, batches, moments, requests
from mpiserve.observe.trace import Trace

LIFE = 1  # the thread of time steps, and of the life of replicas


@dataclass
class Written:
    """What a file of this kind holds.

    Attributes:
        requests: Spans of requests.
        batches: Spans of batches.
        flows: Requests that have an arrow to their batch and back.
        apart: Requests whose batch seems to lie before or after them: the clocks of their hosts
            differ by more than the request took. They have no arrow.
    """

    requests: int = 0
    batches: int = 0
    flows: int = 0
    apart: int = 0


def write(traces: Sequence[Trace], path: Path) -> Written:
    """Write the file; readers see a whole one.

    Raises:
        OSError: If it cannot be written.
    """
    new = path.with_name(f"{path.name}.new")
    with new.open("w") as file:
        written = _Writer(file).write(traces)
    new.replace(path)
    return written


def start_of(traces: Sequence[Trace]) -> int:
    """Return when the first session handle was opened, by the clock of rank 0: time 0."""
    return min(int(trace.aligned(trace.head["opened"])) for trace in traces)


@dataclass
class _Threads:
    """The threads of a rank: requests of a service that overlap have one each."""

    ids: dict[tuple[str, int], int] = field(default_factory=dict)
    ends: dict[str, list[int]] = field(default_factory=dict)

    def of(self, service: str, begin: int, end: int) -> int:
        """Find a thread on which nothing goes on at that time; they come in order of begin."""
        ends = self.ends.setdefault(service, [])
        lane = next((i for i, last in enumerate(ends) if last <= begin), len(ends))
        if lane == len(ends):
            ends.append(end)
        ends[lane] = end
        return self.ids.setdefault((service, lane), LIFE + 1 + len(self.ids))


class _Writer:
    """Writes one file, an event a line."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._first = True
        self._zero = 0
        self._threads: dict[int, _Threads] = {}
        self._batches: dict[tuple[int, str, int], tuple[int, int, int]] = {}
        self._done = Written()

    def write(self, traces: Sequence[Trace]) -> Written:
        self._zero = start_of(traces)
        self._threads = {trace.rank: _Threads() for trace in traces}
        self._file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        for batch in batches(traces):
            self._batch(batch)
        for _, some in groupby(requests(traces), key=lambda one: one.trace.rank):
            for request in sorted(some, key=lambda one: one.begin):  # not all ranks at a time
                self._request(request)
        for moment in moments(traces):
            self._moment(moment)
        for trace in traces:
            self._names(trace)
        about = {"dropped": {str(trace.rank): trace.dropped for trace in traces}}
        self._file.write(f'\n],"otherData":{json.dumps(about)}}}\n')
        return self._done

    def _put(self, ph: str, rank: int, thread: int, at: int, rest: str) -> None:
        """Write an event; Perfetto does not show a process 0."""
        comma = "" if self._first else ",\n"
        self._first = False
        begin = (at - self._zero) / 1000
        self._file.write(
            f'{comma}{{"ph":"{ph}","pid":{rank + 1},"tid":{thread},"ts":{begin:.3f},{rest}}}'
        )

    def _span(
        self, where: tuple[int, int], name: str, begin: int, end: int, args: dict[str, Any]
    ) -> None:
        length = max(end - begin, 1) / 1000
        rest = f'"dur":{length:.3f},"name":{json.dumps(name)},"args":{json.dumps(args)}'
        self._put("X", *where, begin, rest)

    def _batch(self, batch: Batch) -> None:
        event, rank, service = batch.event, batch.trace.rank, batch.trace.name(batch.event)
        where = (rank, self._threads[rank].of(service, batch.begin, batch.end))
        reason = int(event["flags"])
        args: dict[str, Any] = {
            "rows": int(event["rows"]),
            "requests": int(event["requests"]),
        }
        if 0 < reason < len(CLOSED):
            args |= {"closed by": CLOSED[reason]}
        if batch.waited:
            args |= {"last rank": batch.last, "waited us": batch.waited / 1000}
        self._span(where, f"batch {service}", batch.begin, batch.end, args)
        for stage, begin, end in batch.spans:
            self._span(where, stage, begin, end, {})
        self._batches[batch.key] = (where[1], batch.begin, batch.end)
        self._done.batches += 1

    def _request(self, request: Request) -> None:
        event, rank = request.event, request.trace.rank
        where = (rank, self._threads[rank].of(request.service, request.begin, request.end))
        args: dict[str, Any] = {"rows": int(event["rows"]), "head": int(event["peer"])}
        if request.answered:
            args |= {
                "batch requests": int(event["requests"]),
                "batch rows": int(event["batch_rows"]),
            }
        if event["code"]:
            args |= {"code": int(event["code"])}
        if request.source != SOURCES[0]:
            args |= {"answered by": request.source}
        self._span(where, f"request {request.service}", request.begin, request.end, args)
        for stage, begin, end in request.spans:
            self._span(where, stage, begin, end, {})
        self._done.requests += 1
        if request.answered and request.key in self._batches:
            self._flow(request, where)

    def _flow(self, request: Request, where: tuple[int, int]) -> None:
        """An arrow to the batch and back, none of it back in time, each end within a span."""
        thread, begin, end = self._batches[request.key]
        back = request.seen - 1
        if begin > back or end - 1 < request.sent:
            self._done.apart += 1
            return
        self._done.flows += 1
        rest = f'"id":{self._done.flows},"cat":"request","name":"request"'
        self._put("s", *where, request.sent, rest)
        self._put("t", request.key[0], thread, max(begin, request.sent), f'"bp":"e",{rest}')
        self._put("f", *where, back, f'"bp":"e",{rest}')

    def _moment(self, moment: Moment) -> None:
        where = (moment.trace.rank, LIFE)
        if moment.end == moment.begin:
            rest = f'"s":"p","name":{json.dumps(moment.text)}'
            self._put("i", *where, moment.begin, rest)
            return
        args: dict[str, Any] = {}
        if moment.event["kind"] == STEP:
            waited = int(moment.event["times"][2]) / 1000
            args = {"requests": int(moment.event["requests"]), "waited us": waited}
        self._span(where, moment.text, moment.begin, moment.end, args)

    def _names(self, trace: Trace) -> None:
        name = f"rank {trace.rank}: {trace.role} on {trace.host}"
        self._name(trace.rank, LIFE, "process_name", name)
        life = "time steps" if trace.role == "simulation" else "life"
        self._name(trace.rank, LIFE, "thread_name", life)
        for (service, lane), thread in self._threads[trace.rank].ids.items():
            text = f"{service} #{lane + 1}" if lane else service
            self._name(trace.rank, thread, "thread_name", text)

    def _name(self, rank: int, thread: int, kind: str, name: str) -> None:
        self._put(
            "M", rank, thread, self._zero, f'"name":"{kind}","args":{{"name":{json.dumps(name)}}}'
        )
