"""Draw a trace: what each rank did, one under the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.observe.parts import STAGES
from mpiserve.observe.spans import STEP, batches, moments, requests
from mpiserve.observe.trace import Trace
from mpiserve.tools.report_picture import COMPUTED, colours_of
from mpiserve.tools.trace_chrome import start_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 32  # ranks and services that are shown
STEPS = "time steps"  # grey
SPANS = 4000  # of a row: the last ones

Spans = dict[tuple[int, str], deque[tuple[float, float, str]]]  # by rank and service


def draw(traces: Sequence[Trace], file: Path) -> None:
    """Write a picture, of the kind that its name ends with.

    Raises:
        ImportError: Without matplotlib.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = _rows(traces)
    figure, axes = pyplot.subplots(figsize=(12, 1.8 + 0.35 * len(rows)), layout="constrained")
    colours = colours_of() | {STEPS: COMPUTED}
    for at, spans in enumerate(rows.values()):
        _row(axes, at, spans, colours)
    axes.set_yticks(range(len(rows)), [f"rank {rank} {what}" for rank, what in rows])
    axes.set_xlabel("s since open, by the clock of rank 0 (grey: time steps)")
    axes.invert_yaxis()
    _legend(axes, colours, {stage for spans in rows.values() for _, _, stage in spans})
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _rows(traces: Sequence[Trace]) -> Spans:
    """The spans of each rank: its time steps, and the stages of its services."""
    zero, rows = start_of(traces), Spans()

    def add(rank: int, what: str, stage: str, begin: int, end: int) -> None:
        begin_s, length = (begin - zero) * 1e-9, (end - begin) * 1e-9
        rows.setdefault((rank, what), deque(maxlen=SPANS)).append((begin_s, length, stage))

    for moment in moments(traces):
        if moment.event["kind"] == STEP:
            add(moment.trace.rank, "steps", STEPS, moment.begin, moment.end)
    for request in requests(traces):
        for span in request.spans:
            add(request.trace.rank, request.service, *span)
    for batch in batches(traces):
        for span in batch.spans:
            add(batch.trace.rank, f"head of {batch.key[1]}", *span)
    return dict(sorted(rows.items())[:ROWS])


def _row(
    axes: Axes, at: int, spans: Iterable[tuple[float, float, str]], colours: dict[str, Any]
) -> None:
    shades = [colours[stage] for _, _, stage in spans]
    edges = ["white" if stage == STEPS else "none" for _, _, stage in spans]
    bars = [one[:2] for one in spans]
    axes.broken_barh(bars, (at - 0.4, 0.8), facecolors=shades, edgecolors=edges, linewidth=0.5)


def _legend(axes: Axes, colours: dict[str, Any], used: set[str]) -> None:
    from matplotlib.patches import Patch

    named = [stage for stage in STAGES if stage in used]
    patches = [Patch(color=colours[stage], label=stage) for stage in named]
    axes.legend(handles=patches, ncols=6, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0))
