"""Draw how a trainer has learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINES = {"loss": "loss of training", "error": "error, held out", "answering": "of what answers"}


def draw(
    name: str,
    progress: Sequence[Mapping[str, Any]],
    versions: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Write a picture of the loss and the errors by training step, and of the pairs.

    Args:
        name: Of the trainer.
        progress: What it has noted after each validation.
        versions: What it has published.
        path: The picture, whose name says its kind.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    steps = [row["steps"] for row in progress]
    for key, text in LINES.items():
        axes.semilogy(steps, [row[key] for row in progress], label=text)
    for version in versions:
        axes.axvline(version["steps"], color="0.6", linewidth=0.8)
        axes.annotate(version["name"], (version["steps"], version["error"]), fontsize=8)
    pairs = axes.twinx()
    pairs.plot(steps, [row["rows"] for row in progress], color="0.6", linestyle=":")
    pairs.set_ylabel("pairs (dotted)")
    axes.set(title=f"Trainer {name}", xlabel="training steps", ylabel="loss; error of the mean = 1")
    axes.legend(loc="lower left")
    fresh = path.with_name(f".new.{path.name}")
    figure.savefig(fresh, dpi=120)
    fresh.replace(path)
