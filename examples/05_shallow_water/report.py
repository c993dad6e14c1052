"""Compare the two runs of out/: a picture, out/result.json, and exit status 1 beyond the limits.

python report.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# Limits for the differences between the runs with the network and with the formula.
LIMITS = {
    "volume_drift": 1e-12,  # relative; finite volumes lose nothing but round-off
    "friction_error": 0.01,  # of the largest friction rate of the run
    "viscosity_error": 0.01,
    "depth_error": 1e-3,  # relative, any cell, any frame
}


class Run(NamedTuple):
    """One run: times, and [frame, y, x] of depth and speed."""

    times: np.ndarray
    depth: np.ndarray
    speed: np.ndarray


def read_summary(folder: Path) -> dict[str, float]:
    """Read the lines of "name value" that the simulation wrote."""
    lines = (folder / "summary.txt").read_text().split("\n")
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.strip()}


def read_run(file: Path, nx: int, ny: int) -> Run:
    """Read frames of a time and q(3, nx, ny), which is [ny, nx, 3] here."""
    record = np.dtype([("time", "f8"), ("q", "f8", (ny, nx, 3))])
    frames = np.fromfile(file, record)
    depth = frames["q"][..., 0]
    return Run(frames["time"], depth, np.hypot(*np.moveaxis(frames["q"][..., 1:], -1, 0)) / depth)


def result(summary: dict[str, float], network: Run, formula: Run) -> dict[str, object]:
    """Return the numbers, and whether they are within the limits."""
    found = {
        "volume_drift": max(summary["network_volume_drift"], summary["formula_volume_drift"]),
        "friction_error": summary["network_friction_error"],
        "viscosity_error": summary["network_viscosity_error"],
        "depth_error": float(np.max(np.abs(network.depth / formula.depth - 1))),
    }
    steps = int(summary["network_steps"])
    return {
        "steps": steps,
        "ranks": int(summary["ranks"]),
        **found,
        "ms_per_step": 1e3 * summary["network_seconds"] / steps,
        "ms_per_step_in_the_closure": 1e3 * summary["network_closure_seconds"] / steps,
        "limits": LIMITS,
        "within_limits": all(found[name] <= limit for name, limit in LIMITS.items()),
    }


def draw(summary: dict[str, float], network: Run, formula: Run, file: Path) -> None:
    """Draw the water surface of the frames, the final speed, and the difference of the runs."""
    extent = (0, summary["length"], 0, summary["width"])
    figure, axes = plt.subplots(
        2, 3, figsize=(13, 7), layout="constrained", sharex=True, sharey=True
    )
    shown = np.linspace(1, len(network.times) - 1, 4).round().astype(int)
    surface = {"vmin": network.depth[1:].min(), "vmax": network.depth[1:].max()}
    for axis, frame in zip(axes.flat[:4], shown, strict=True):
        title = f"surface after {network.times[frame]:.0f} s"
        panel(figure, axis, network.depth[frame], extent, "Blues", "depth, m", title, **surface)
    panel(
        figure, axes[1, 1], network.speed[-1], extent, "viridis", "speed, m/s", "speed at the end"
    )
    apart = 1e6 * np.abs(network.depth[-1] / formula.depth[-1] - 1)
    title = "network against formula"
    panel(figure, axes[1, 2], apart, extent, "magma", "relative depth, millionths", title)
    for axis in axes[1]:
        axis.set_xlabel("x, m")
    for axis in axes[:, 0]:
        axis.set_ylabel("y, m")
    figure.suptitle("Shallow water with friction and eddy viscosity from a network")
    figure.savefig(file, dpi=130)


def panel(figure, axis, values, extent, colours, label, title, **scale) -> None:
    """Draw one field with a bar of its own."""
    image = axis.imshow(values, origin="lower", extent=extent, cmap=colours, **scale)
    figure.colorbar(image, ax=axis, label=label, shrink=0.8)
    axis.set_title(title)


def main() -> int:
    """Read, compare, draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    summary = read_summary(folder)
    nx, ny = int(summary["nx"]), int(summary["ny"])
    network, formula = (read_run(folder / f"{name}.bin", nx, ny) for name in ("network", "formula"))
    found = result(summary, network, formula)
    (folder / "result.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(summary, network, formula, folder / "picture.png")
    for name, limit in LIMITS.items():
        print(f"{name.replace('_', ' '):18} {found[name]:9.2e}   (limit {limit:.0e})")
    for name in ("ms_per_step", "ms_per_step_in_the_closure"):
        print(f"{name.replace('_', ' '):28} {found[name]:.2f}")
    print(f"{folder}/picture.png, {folder}/result.json")
    return 0 if found["within_limits"] else 1


if __name__ == "__main__":
    sys.exit(main())
