"""The results of the example: one picture of what was learnt and what it was worth, and a table."""

import kinetics
import numpy as np
import transport
from rich.table import Table

from mpiserve import terminal


def draw(path, result, shown, learned):
    """Draw the loss curve, trust, time and error over the steps, and the fields at the end."""
    from matplotlib.figure import Figure  # a second of import that only this rank needs

    figure = Figure(figsize=(13, 10), layout="constrained")
    axes = figure.subplots(3, 2)
    draw_learning(axes[0, 0], learned)
    draw_trust(axes[0, 1], shown)
    draw_times(axes[1, 0], shown)
    draw_errors(axes[1, 1], result, shown)
    draw_field(figure, axes[2, 0], result, shown["learnt"][0], "with the service")
    draw_field(figure, axes[2, 1], result, shown["reference"][0], "the physics alone")
    figure.suptitle(title(result))
    figure.savefig(path, dpi=130)


def title(result):
    """Return the line above the picture."""
    text = "A flame whose network learns while it burns: at the end"
    trusted = f"{100 * result['trusted_last']:.1f} % of the rows are trusted"
    return f"{text} {trusted}, and a step is {result['speedup_last']:.1f} times faster"


def draw_learning(axes, learned):
    """Draw the loss and the error on held-out pairs, with a line for each version."""
    axes.set(title="Learning", xlabel="training step", ylabel="loss, error (mean: 1)")
    if not learned or not learned["progress"]:
        return
    rows = learned["progress"]
    steps = [row["steps"] for row in rows]
    for key, text in (("loss", "loss"), ("error", "error, held out"), ("answering", "answering")):
        axes.semilogy(steps, [row[key] for row in rows], label=text, linewidth=1.2)
    for version in learned["versions"]["published"]:
        axes.axvline(version["steps"], color="0.7", linewidth=0.8)
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)


def draw_trust(axes, shown):
    """Draw the share of the rows that a network answered, and was trusted with."""
    steps = np.arange(1, len(shown["share"]) + 1)
    axes.plot(steps, 100 * shown["share"], color="C2")
    axes.axhline(90, color="0.4", linestyle="--", label="90 %")
    axes.set(title="Trusted rows", xlabel="time step", ylabel="%", ylim=(-3, 103))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


def draw_times(axes, shown):
    """Draw how long each step took, with the service and with the physics alone."""
    steps = np.arange(1, len(shown["seconds"]) + 1)
    axes.semilogy(steps, 1e3 * shown["alone"], color="0.5", label="the physics alone")
    axes.semilogy(steps, 1e3 * shown["seconds"], color="C0", label="with the service")
    axes.set(title="Time of a step", xlabel="time step", ylabel="ms")
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3, which="both")


def draw_errors(axes, result, shown):
    """Draw the largest relative error of the temperature after each step."""
    steps = np.arange(1, len(shown["errors"]) + 1)
    axes.semilogy(steps, 100 * np.maximum(shown["errors"], 1e-9), color="C3", label="largest")
    axes.axhline(100 * result["limit"], color="0.4", linestyle="--", label="stated limit")
    axes.set(title="Error of the temperature", xlabel="time step", ylabel="%")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3, which="both")


def draw_field(figure, axes, result, temperature, text):
    """Draw a temperature field."""
    lengths = zip(transport.LENGTH, result["grid"], strict=True)
    x, y = ((np.arange(n) + 0.5) * length / n for length, n in lengths)
    limits = {"vmin": 1.0, "vmax": kinetics.BURNT_TEMPERATURE}
    mesh = axes.pcolormesh(x, y, temperature, cmap="inferno", shading="nearest", **limits)
    figure.colorbar(mesh, ax=axes, label="temperature")
    axes.set(title=f"Temperature: {text}", xlabel="x", ylabel="y")
    axes.set_aspect("equal")


def print_table(result, folder):
    """Print the result and where the files are."""
    table = Table(title="A flame whose network learns while it burns", show_header=False)
    first, last = 100 * result["trusted_first"], 100 * result["trusted_last"]
    table.add_row("trusted rows, at first and at last", f"{first:.1f} %, {last:.1f} %")
    steps = 1e3 * result["seconds_per_step_last"], 1e3 * result["seconds_per_step_physics"]
    table.add_row("step at last, with the physics alone", f"{steps[0]:.1f} ms, {steps[1]:.1f} ms")
    table.add_row("speed-up of a step at last", f"{result['speedup_last']:.1f}")
    whole = f"{result['seconds_with_service']:.0f} s, {result['seconds_physics']:.0f} s"
    table.add_row("all steps, with the physics alone", whole)
    error = 100 * result["max_rel_error_temperature"]
    table.add_row("max. relative error, temperature", f"{error:.3f} %")
    console = terminal.console()
    console.print(table)
    for name in ("picture.png", "result.json"):
        console.print(f"{name}: {folder / name}", highlight=False, soft_wrap=True)
