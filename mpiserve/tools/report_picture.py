"""Draw a report: the mean request of each service by stage, and the time steps of the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.observe.parts import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANKS = 16  # that are shown
COMPUTED = "0.85"  # grey


def draw(report: dict[str, Any], file: Path) -> None:
    """Write a picture, of the kind that its name ends with.

    Raises:
        ImportError: Without matplotlib.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = colours_of()
    services = {name: one for name, one in report["services"].items() if one["total"]["count"]}
    ranks = sorted(report["simulation"], key=lambda one: -one["waited"])[:RANKS]
    heights = [1 + 0.5 * len(services), 1 + 0.3 * len(ranks)]
    figure, axes = pyplot.subplots(
        2, figsize=(10, 2 + sum(heights)), height_ratios=heights, layout="constrained"
    )
    figure.suptitle(report["answer"], fontsize=10, wrap=True)
    _requests(axes[0], services, colours)
    _steps(axes[1], ranks, colours)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def colours_of() -> dict[str, Any]:
    """Return the colour of each stage."""
    from matplotlib import pyplot

    shades = [pyplot.get_cmap("tab10")(i) for i in range(len(STAGES) - 1)]
    return dict(zip(STAGES, [*shades, "black"], strict=True))


def _requests(axes: Axes, services: dict[str, Any], colours: dict[str, Any]) -> None:
    """One stage after the other, so that it is seen where the time of a request goes."""
    for stage in STAGES:
        means = [one["stages"][stage]["sum"] / one["total"]["count"] for one in services.values()]
        begins = [_before(one, stage) for one in services.values()]
        if any(means):
            widths, lefts = [1e3 * mean for mean in means], [1e3 * begin for begin in begins]
            axes.barh([*services], widths, left=lefts, color=colours[stage], label=stage)
    axes.set_xlabel("mean request, ms")
    axes.invert_yaxis()
    if services:
        axes.legend(ncols=6, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.25))


def _before(service: dict[str, Any], stage: str) -> float:
    earlier = STAGES[: STAGES.index(stage)]
    total = sum(service["stages"][one]["sum"] for one in earlier)
    return float(total / service["total"]["count"])


def _steps(axes: Axes, ranks: list[dict[str, Any]], colours: dict[str, Any]) -> None:
    """Each step of a rank: computed, then what it waited for. In a step they may take turns."""
    for at, rank in enumerate(ranks):
        spans, shades = [], []
        for step in rank["last_steps"]:
            begin, computed = step["begin"], step["seconds"] - step["waited"]
            spans.append((begin, computed))
            shades.append(COMPUTED)
            begin += computed
            for stage, seconds in step["waited_for"].items():
                if seconds:
                    spans.append((begin, seconds))
                    shades.append(colours[stage])
                    begin += seconds
        axes.broken_barh(spans, (at - 0.4, 0.8), facecolors=shades)
    axes.set_yticks(range(len(ranks)), [f"rank {one['rank']}" for one in ranks])
    axes.set_xlabel("time steps, s since open (grey: computed)")
    axes.invert_yaxis()
