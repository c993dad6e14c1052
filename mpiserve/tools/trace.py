"""The program `trace`: what the ranks of a job with MPISERVE_PROFILE=trace have done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mpiserve.observe import trace as tracing
from mpiserve.observe.trace import Trace

NAME = "mpiserve-trace.json"


def merge(folders: Sequence[str], file: str | None = None) -> int:
    """Write one file of the traces in folders: Chrome JSON.

    Returns:
        The exit status: 1 if there is no trace, or no file can be written.
    """
    return _with(folders, lambda traces: _chrome(traces, Path(file or NAME)))


def view(folders: Sequence[str], slowest: int, picture: str | None = None) -> int:
    """Print what a trace holds, and draw it.

    Returns:
        The exit status.
    """

    def show(traces: Sequence[Trace]) -> str:
        from mpiserve.tools import trace_view

        text = trace_view.text(traces, slowest)
        if picture:
            from mpiserve.tools.trace_picture import draw

            draw(traces, Path(picture))
        return text

    return _with(folders, show)


def export(
    folders: Sequence[str],
    otlp: str | None = None,
    chrome: str | None = None,
    json: str | None = None,
) -> int:
    """Write a trace in other forms: those that are named, each to its file.

    Args:
        folders: Of the traces.
        otlp: A file, or the URL of a collector of OpenTelemetry.
        chrome: As merge does.
        json: A file for all of it, in a form of our own.

    Returns:
        The exit status.
    """
    if not (otlp or chrome or json):
        print("mpiserve: trace export needs --otlp, --chrome or --json", file=sys.stderr)
        return 2

    def write(traces: Sequence[Trace]) -> str:
        lines = []
        if chrome:
            lines.append(_chrome(traces, Path(chrome)))
        if json:
            lines.append(_plain(traces, Path(json)))
        if otlp:
            lines.append(_otlp(traces, otlp))
        return "\nmpiserve: ".join(lines)

    return _with(folders, write)


def _with(folders: Sequence[str], use: Callable[[Sequence[Trace]], str]) -> int:
    traces = tracing.read(map(Path, folders))
    if not traces:
        where = ", ".join(folders)
        print(f"mpiserve: {where}: there is no trace of this version", file=sys.stderr)
        return 1
    try:
        print(f"mpiserve: {use(traces)}")
    except (ImportError, OSError, ValueError) as error:  # no matplotlib, no room, no such picture
        print(f"mpiserve: {error}", file=sys.stderr)
        return 1
    return 0


def _chrome(traces: Sequence[Trace], file: Path) -> str:
    from mpiserve.tools.trace_chrome import write

    done = write(traces, file)
    counts = f"{done.requests} requests, {done.flows} with their batch, and {done.batches} batches"
    lines = [f"{file}: {counts} of {len(traces)} ranks; open it with https://ui.perfetto.dev"]
    if done.apart:
        lines.append(
            f"{done.apart} requests have no arrow: by the clocks of their hosts, which differ by"
            " more than such a request takes, their batch lies before or after them"
        )
    if gone := tracing.lost([trace.head for trace in traces]):
        lines.append(gone)
    return "\nmpiserve: ".join(lines)


def _plain(traces: Sequence[Trace], file: Path) -> str:
    from mpiserve.tools import trace_spans

    trace_spans.write_json(trace_spans.plain(traces), file)
    return f"{file}: the trace of {len(traces)} ranks"


def _otlp(traces: Sequence[Trace], to: str) -> str:
    from mpiserve.tools import trace_spans

    if to.startswith(("http://", "https://")):
        return f"{to}: took {trace_spans.send(traces, to)} spans"
    return f"{to}: {trace_spans.write_otlp(traces, Path(to))} spans, in the JSON form of OTLP"
