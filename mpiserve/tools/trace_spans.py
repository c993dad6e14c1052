"""Write a trace as plain JSON, or as spans of OpenTelemetry: OTLP in its JSON form."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.request import Request as Post
from urllib.request import urlopen

from mpiserve import __version__
from mpiserve.observe.spans import Batch, Moment, Request, batches, moments, requests
from mpiserve.observe.trace import Trace
from mpiserve.tools.trace_chrome import start_of

FORMAT = 1
CLIENT, SERVER, INTERNAL = 3, 2, 1  # SpanKind
ERROR = 2  # StatusCode
SPANS = 2000  # of a message to a collector, which may refuse large ones
TIMEOUT = 30.0  # seconds, for each

Span = dict[str, Any]


# ---- plain JSON


def plain(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the whole trace, with times in nanoseconds since open, by the clock of rank 0."""
    zero = start_of(traces)
    return {
        "format": FORMAT,
        "ranks": [
            {"rank": one.rank, "host": one.host, "role": one.role, "dropped": one.dropped}
            for one in traces
        ],
        "requests": [_request(one, zero) for one in requests(traces)],
        "batches": [_batch(one, zero) for one in batches(traces)],
        "moments": [
            {"rank": one.trace.rank, "what": one.text}
            | {"begin": one.begin - zero, "end": one.end - zero}
            for one in moments(traces)
        ],
    }


def _stages(spans: Iterable[tuple[str, int, int]], zero: int) -> list[dict[str, Any]]:
    return [{"stage": name, "begin": a - zero, "end": b - zero} for name, a, b in spans]


def _request(one: Request, zero: int) -> dict[str, Any]:
    event = one.event
    return {
        "rank": one.trace.rank,
        "service": one.service,
        "begin": one.begin - zero,
        "end": one.end - zero,
        "rows": int(event["rows"]),
        "head": int(event["peer"]),
        "batch": _id(one.key) if one.answered else None,
        "code": int(event["code"]),
        "answered by": one.source,
        "stages": _stages(one.spans, zero),
    }


def _batch(one: Batch, zero: int) -> dict[str, Any]:
    event = one.event
    return {
        "batch": _id(one.key),
        "rank": one.trace.rank,
        "service": one.key[1],
        "begin": one.begin - zero,
        "end": one.end - zero,
        "rows": int(event["rows"]),
        "requests": int(event["requests"]),
        "last rank": one.last,
        "waited": one.waited,
        "stages": _stages(one.spans, zero),
    }


def _id(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def write_json(made: object, file: Path) -> None:
    """Write JSON; readers see a whole file.

    Raises:
        OSError: If it cannot be written.
    """
    new = file.with_name(f"{file.name}.new{os.getpid()}")
    new.write_text(json.dumps(made) + "\n")
    new.replace(file)


# ---- OpenTelemetry


def otlp(traces: Sequence[Trace]) -> Iterator[tuple[dict[str, Any], Span]]:
    """Return spans, each with the resource that it belongs to: its rank.

    A request is a trace of its own, with a span for each of its stages. A batch serves several, so
    that it has one too, whose span has links to those of its requests.
    """
    # The wall clock of rank 0 may be set meanwhile: one reading serves all.
    first = traces[0]
    wall = int(first.head["opened_at"]) - int(first.aligned(first.head["opened"]))
    run = int(first.head["run"])
    resources = {one.rank: _resource(one, run) for one in traces}
    members: dict[tuple[int, str, int], list[Span]] = {}
    for number, request in enumerate(requests(traces)):
        ids = (_id(run, number) + _id(number, run), _id("request", run, number))
        if request.answered:
            members.setdefault(request.key, []).append({"traceId": ids[0], "spanId": ids[1]})
        for span in _request_spans(request, ids, wall):
            yield resources[request.trace.rank], span
    for batch in batches(traces):
        for span in _batch_spans(batch, run, wall, members.get(batch.key, [])):
            yield resources[batch.trace.rank], span
    for number, moment in enumerate(moments(traces)):
        yield resources[moment.trace.rank], _moment_span(moment, (run, number), wall)


def _value(value: str | int) -> dict[str, str]:
    """Numbers of 64 bits are texts in the JSON form of protobuf."""
    return {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}


def _attributes(named: dict[str, str | int]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in named.items()]


def _resource(trace: Trace, run: int) -> dict[str, Any]:
    named: dict[str, str | int] = {
        "service.name": f"mpiserve {trace.role}",
        "service.instance.id": f"{run & (1 << 63) - 1:x}.{trace.rank}",
        "host.name": trace.host,
        "process.pid": int(trace.head["pid"]),
        "mpiserve.rank": trace.rank,
    }
    return {"attributes": _attributes(named)}


def _span(name: str, ids: tuple[str, str], begin: int, end: int, kind: int = INTERNAL) -> Span:
    return {
        "traceId": ids[0],
        "spanId": ids[1],
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(begin),
        "endTimeUnixNano": str(end),
    }


def _children(
    spans: Iterable[tuple[str, int, int]], ids: tuple[str, str], wall: int
) -> Iterator[Span]:
    for at, (stage, begin, end) in enumerate(spans):
        own = (ids[0], _id(ids[1], at))
        yield _span(stage, own, begin + wall, end + wall) | {"parentSpanId": ids[1]}


def _request_spans(one: Request, ids: tuple[str, str], wall: int) -> Iterator[Span]:
    event = one.event
    span = _span(f"request {one.service}", ids, one.begin + wall, one.end + wall, CLIENT)
    named: dict[str, str | int] = {
        "mpiserve.service": one.service,
        "mpiserve.rows": int(event["rows"]),
        "mpiserve.head": int(event["peer"]),
        "mpiserve.answered_by": one.source,
    }
    span["attributes"] = _attributes(named)
    if event["code"]:
        span["status"] = {"code": ERROR, "message": f"code {int(event['code'])}"}
    yield span
    yield from _children(one.spans, ids, wall)


def _batch_spans(one: Batch, run: int, wall: int, links: list[Span]) -> Iterator[Span]:
    ids = (_id(run, one.key) + _id(one.key, run), _id("batch", run, one.key))
    span = _span(f"batch {one.key[1]}", ids, one.begin + wall, one.end + wall, SERVER)
    named: dict[str, str | int] = {
        "mpiserve.service": one.key[1],
        "mpiserve.rows": int(one.event["rows"]),
        "mpiserve.requests": int(one.event["requests"]),
        "mpiserve.last_rank": one.last,
    }
    yield span | {"attributes": _attributes(named), "links": links}
    yield from _children(one.spans, ids, wall)


def _moment_span(one: Moment, name: tuple[int, int], wall: int) -> Span:
    ids = (_id("moment", name) + _id(name, "moment"), _id("at", name))
    return _span(one.text, ids, one.begin + wall, one.end + wall)


def message(spans: Iterable[tuple[dict[str, Any], Span]]) -> dict[str, Any]:
    """Return an ExportTraceServiceRequest of spans, in the JSON form of OTLP."""
    by_rank: dict[int, dict[str, Any]] = {}
    for resource, span in spans:
        one = by_rank.setdefault(id(resource), {"resource": resource, "spans": []})
        one["spans"].append(span)
    scope = {"name": "mpiserve", "version": __version__}
    return {
        "resourceSpans": [
            {"resource": one["resource"], "scopeSpans": [{"scope": scope, "spans": one["spans"]}]}
            for one in by_rank.values()
        ]
    }


def messages(traces: Sequence[Trace]) -> Iterator[tuple[str, int]]:
    """Return the spans in messages, each with how many there are."""
    spans = otlp(traces)
    while some := list(islice(spans, SPANS)):
        yield json.dumps(message(some)), len(some)


def write_otlp(traces: Sequence[Trace], file: Path) -> int:
    """Write spans as a file exporter of OpenTelemetry does, a message a line; return how many.

    Raises:
        OSError: If it cannot be written.
    """
    written = 0
    new = file.with_name(f"{file.name}.new{os.getpid()}")
    with new.open("w") as to:
        for text, spans in messages(traces):
            to.write(f"{text}\n")
            written += spans
    new.replace(file)
    return written


def send(traces: Sequence[Trace], url: str) -> int:
    """Send spans to a collector, such as http://localhost:4318/v1/traces; return how many.

    Raises:
        OSError: If it cannot be reached, or refuses them.
    """
    sent = 0
    for text, spans in messages(traces):
        post = Post(url, text.encode(), {"Content-Type": "application/json"})
        with urlopen(post, timeout=TIMEOUT):  # raises an OSError, also of a status
            sent += spans
    return sent
