"""Draw how the answers of a replay differ from those that were captured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Replayed(NamedTuple):
    """What the replay of a service has found.

    Attributes:
        service: Its name.
        largest: Of each row, by output: the largest absolute difference.
        steps: The time step of each row.
    """

    service: str
    largest: Mapping[str, np.ndarray]
    steps: np.ndarray


def check_kind(path: Path) -> None:
    """Refuse a name whose ending matplotlib does not know, before there is anything to draw."""
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"{path}: the name of a picture ends in .png, .pdf or .svg")


def draw(found: Sequence[Replayed], path: Path) -> None:
    """Write a picture of the differences of each service: by share of the rows, and by time step.

    Args:
        found: The services; those without rows are left out.
        path: The picture, whose name says its kind.

    Raises:
        ImportError: Without matplotlib.
        ValueError: If matplotlib does not know that kind.
    """
    from matplotlib.figure import Figure

    shown = [each for each in found if len(each.steps)]
    figure = Figure(figsize=(11, 4 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 2, squeeze=False)
    for each, (left, right) in zip(shown, axes, strict=False):
        _draw_shares(left, each)
        _draw_steps(right, each)
    figure.savefig(path, dpi=120)


def _draw_shares(axes: Axes, each: Replayed) -> None:
    """Draw which share of the rows differs by how much at most."""
    for name, largest in each.largest.items():
        shares = np.arange(1, len(largest) + 1) / len(largest)
        infinite = int(np.isinf(largest).sum())
        label = f"{name}, infinite in {infinite} rows" if infinite else name
        axes.plot(100 * shares, _shown(np.sort(largest)), label=label)
    title = f"{each.service}: differences of {len(each.steps)} rows"
    _label(axes, each, title=title, xlabel="% of the rows differ by at most")


def _draw_steps(axes: Axes, each: Replayed) -> None:
    """Draw the largest difference of each time step."""
    steps, which = np.unique(each.steps, return_inverse=True)
    for name, largest in each.largest.items():
        most = np.zeros(len(steps))
        np.maximum.at(most, which, largest)
        axes.plot(steps, _shown(most), ".-", label=name)
    _label(axes, each, title=f"{each.service}: the largest difference", xlabel="time step")


def _shown(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _label(axes: Axes, each: Replayed, **texts: Any) -> None:
    axes.set(**texts, ylabel="absolute difference")
    axes.grid(alpha=0.3)
    if any(largest.any() for largest in each.largest.values()):
        axes.set_yscale("log")
        axes.legend()
    else:
        axes.text(0.5, 0.5, "no row differs", transform=axes.transAxes, ha="center")
