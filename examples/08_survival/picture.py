"""The results of the example: a picture of what happened when, and a table."""

from collections import Counter

import numpy as np
from rich.table import Table

from mpiserve import terminal

KINDS = {"crash": "C3", "hang": "C1", "nan": "C0"}


def draw(path, result, shown):
    """Draw the time of each step, the rows that the physics answered, and the error."""
    from matplotlib.figure import Figure  # a second of import that only this rank needs

    figure = Figure(figsize=(10, 8), layout="constrained")
    times, rows, errors = figure.subplots(3, 1, sharex=True)
    draw_times(times, shown)
    draw_rows(rows, shown)
    draw_errors(errors, result, shown)
    errors.set_xlabel("step")
    figure.suptitle(title(result))
    figure.savefig(path, dpi=130)


def title(result):
    """Return the line above the picture."""
    counts = ", ".join(f"{result[kind]} x {kind}" for kind in KINDS)
    return f"A flame of {result['steps']} steps, whose model has {counts}"


def draw_times(axes, shown):
    """Draw how long each step took, and a mark for each fault in it."""
    seconds = np.diff(shown["ends"])
    axes.semilogy(np.arange(1, len(seconds) + 1), 1e3 * seconds, color="0.4", linewidth=1)
    for kind, colour in KINDS.items():
        marks = [(step, y) for step, y, k in marks_of(shown["events"], seconds) if k == kind]
        axes.scatter(*np.reshape(marks, (-1, 2)).T, color=colour, label=kind, zorder=3)
    axes.set(ylabel="time of the step, ms", title="What happened when")
    axes.grid(alpha=0.3)
    axes.margins(y=0.25)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)  # hides no mark


def marks_of(events, seconds):
    """Yield step, height and kind of each fault; those of one step lie one above the other."""
    drawn = Counter()
    for step, kind in events:
        at = min(max(step, 1), len(seconds))
        yield at, 1e3 * seconds[at - 1] * 2 ** drawn[at], kind
        drawn[at] += 1


def draw_rows(axes, shown):
    """Draw how many rows of each step the integrator has answered."""
    axes.bar(np.arange(1, len(shown["rows"]) + 1), shown["rows"], color="C2", width=1.0)
    axes.set(ylabel="rows", title="Rows that the physics has answered")
    axes.grid(alpha=0.3)


def draw_errors(axes, result, shown):
    """Draw the largest relative difference from the undisturbed run after each step."""
    steps = np.arange(1, len(shown["errors"]) + 1)
    axes.semilogy(steps, 100 * np.maximum(shown["errors"], 1e-9), color="C3", label="largest")
    axes.axhline(100 * result["limit"], color="0.4", linestyle="--", label="stated limit")
    axes.set(ylabel="difference of temperature, %", title="Difference from the undisturbed run")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")


def print_table(result, folder):
    """Print the result and where the files are."""
    table = Table(title="A flame that survives its model", show_header=False)
    largest = 1e3 * result["seconds_per_step_largest"]
    table.add_row("faults of the model", ", ".join(f"{result[kind]} {kind}" for kind in KINDS))
    table.add_row("rows that the physics has answered", f"{result['rows_by_physics']}")
    table.add_row("of all rows", f"{100 * result['rows_by_physics'] / result['rows']:.2f} %")
    table.add_row(
        "step", f"{1e3 * result['seconds_per_step_median']:.1f} ms, at most {largest:.0f}"
    )
    error = 100 * result["max_rel_difference_temperature"]
    table.add_row("max. relative difference, temperature", f"{error:.3f} %")
    console = terminal.console()
    console.print(table)
    for name in ("picture.png", "result.json"):
        console.print(f"{name}: {folder / name}", highlight=False, soft_wrap=True)
