"""Show a run: progress, tables and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from mpiserve import terminal

Row = dict[str, Any]

LABELS = ("case", "client", "backend", "transport", "memory", "model", "engine", "place")
FIGURES = ("p50_us", "p99_us", "max_us")
APART = ("paper", "paper_bootstrap")  # they have tables of their own: bench/paper/tables.py
WIDTH = 120
LINES = 8  # lines for each stage, without a terminal


class Progress:
    """Shows the progress of a run on one rank, by a bar.

    Launchers pass on the output of ranks, so there is seldom a terminal: then the bar is
    printed again now and then. A context manager. On other ranks it shows nothing.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.console = terminal.console(stderr=True, quiet=not shown)
        self._task = TaskID(0)
        self._steps = self._done = 0
        columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._live = shown and self.console.is_terminal
        self._bar = Bar(
            TimeElapsedColumn(),
            *columns,
            console=self.console,
            # A refresh would disturb measurements, so only steps draw, between two cases.
            auto_refresh=False,
            disable=not self._live,
        )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, stage: str, steps: int) -> None:
        """Start a stage of `steps` steps."""
        self.say(stage)
        self._task = self._bar.add_task(stage, total=steps)
        self._steps, self._done = steps, 0

    def step(self, title: str) -> None:
        """Show the step that begins now."""
        self._bar.update(self._task, completed=self._done, description=title, refresh=True)
        if not self._live and self._done % max(1, self._steps // LINES) == 0:
            task = next(task for task in self._bar.tasks if task.id == self._task)
            self.console.print(self._bar.make_tasks_table([task]))
        self._done += 1

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def write_json(path: Path, report: Row) -> None:
    """Write the report of a run, with one row on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({key: report[key] for key in ("machine", "mpi")}, indent=2)
    rows = ",\n".join(f"    {json.dumps(row)}" for row in report["rows"])
    path.write_text(f'{head[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n')


def show(report: Row) -> None:
    """Print the tables of a run."""
    console = terminal.console(width=WIDTH)
    latencies = [row for row in report["rows"] if "p50_us" in row]
    if latencies:
        console.print(latency_table(latencies))
    values = [row for row in report["rows"] if "value" in row and row["case"] not in APART]
    if values:
        console.print(value_table(values))


def label(row: Row) -> str:
    """Return the name of a row's line in the table."""
    return " ".join(str(row[key]) for key in LABELS if key in row)


def size_name(size: int) -> str:
    """Write a number of bytes with a unit."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def latency_table(rows: list[Row]) -> Table:
    """Make a table of the medians: a line for each case, a column for each size."""
    sizes = sorted({row["bytes"] for row in rows if "model" not in row})
    table = Table(title="round trip, p50 in microseconds")
    table.add_column("case", no_wrap=True)
    for size in sizes:
        table.add_column(size_name(size), justify="right")
    networks = [row for row in rows if "model" in row]
    for name in dict.fromkeys(label(row) for row in rows if "model" not in row):
        found = {row["bytes"]: figure(row["p50_us"]) for row in rows if label(row) == name}
        table.add_row(name, *[found.get(size, "") for size in sizes])
    for row in networks:
        figures = [figure(row[name]) for name in FIGURES]
        table.add_row(f"{label(row)}, 1 row: {figures[0]} (p99 {figures[1]}, max {figures[2]})")
    return table


def value_table(rows: Iterable[Row]) -> Table:
    """Make a table of all other cases, a line for each."""
    table = Table("case", "parameters", "value", "unit")
    for row in rows:
        rest = {key: value for key, value in row.items() if key not in ("case", "value", "unit")}
        parameters = ", ".join(f"{key} {value}" for key, value in rest.items())
        table.add_row(row["case"], parameters, figure(row["value"]), row["unit"])
    return table


def figure(value: float) -> str:
    """Write a number with its significant digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
