"""Tables of the experiments, for the terminal and for a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mpiserve import terminal
from mpiserve.bench.paper.figures import (
    AUTHORS,
    BOOTSTRAP,
    CASE,
    MPISERVE,
    NAMES,
    PHASES,
    RADICAL,
    SYSTEMS,
    ZEROMQ,
    Row,
    in_three,
    ratios,
)

WIDTH = 140
THREE = ("communication", "service", "inference")


class Grid(NamedTuple):
    """A table: what it shows, its heading, and its lines."""

    title: str
    heading: Sequence[str]
    lines: list[Sequence[str]]


def show(rows: Sequence[Row]) -> None:
    """Print the tables of what was measured, if anything was."""
    from rich.table import Table

    console = terminal.console(width=WIDTH)
    for grid in grids(rows):
        table = Table(*grid.heading, title=grid.title)
        for line in grid.lines:
            table.add_row(*line)
        console.print(table)


def write(rows: Sequence[Row], path: Path) -> Path:
    """Write the tables as Markdown."""
    path.write_text("\n\n".join(map(markdown, grids(rows))) + "\n")
    return path


def markdown(grid: Grid) -> str:
    """Write a table as Markdown."""
    lines = [grid.heading, ["---"] * len(grid.heading), *grid.lines]
    return "\n".join([f"*{grid.title}*", "", *(f"| {' | '.join(line)} |" for line in lines)])


def grids(rows: Sequence[Row]) -> Iterator[Grid]:
    """Make the tables that there are rows for."""
    measured = [row for row in rows if row["case"] == CASE]
    nothing = [row for row in measured if row["model"] != "llama"]
    llamas = [row for row in measured if row["model"] == "llama"]
    booted = [row for row in rows if row["case"] == BOOTSTRAP]
    for grid in (rates(nothing), responses(nothing), languages(llamas), bootstraps(booted)):
        if grid.lines:
            yield grid


# ---- requests per second


def rates(rows: Sequence[Row]) -> Grid:
    """A line for each experiment without a model: all systems beside each other."""
    heading = ["services", "clients", *map(NAMES.__getitem__, SYSTEMS)]
    heading += ["÷ ZeroMQ", "÷ RADICAL-Pilot", "the authors"]
    lines = [rate_line(key, rows) for key in dict.fromkeys(map(place, rows))]
    return Grid("requests/s of a service that does nothing: medians", heading, lines)


def place(row: Row) -> tuple[str, int, int]:
    """Return what a line of the table is about."""
    return row["model"], row["services"], row["clients"]


def rate_line(key: tuple[str, int, int], rows: Sequence[Row]) -> Sequence[str]:
    """Write a line."""
    model, services, clients = key
    found = {row["system"]: row for row in rows if place(row) == key}
    times = {row["rival"]: f"{row['value']:.1f}" for row in ratios([*found.values()])}
    name = f"{services} (a function in Python)" if model == "python" else str(services)
    values = [f"{found[one]['value']:,.0f}" if one in found else "" for one in SYSTEMS]
    authors = AUTHORS.get((services, clients)) if model == "noop" else None
    ends = [times.get(ZEROMQ, ""), times.get(RADICAL, ""), f"{authors:,}" if authors else ""]
    return [name, str(clients), *values, *ends]


# ---- RT and IT


def responses(rows: Sequence[Row]) -> Grid:
    """A line for each experiment and system."""
    heading = ["services", "clients", "system", "RT, µs", *THREE, "p50", "p99"]
    return Grid("RT by part: means of a request, in µs", heading, [*map(response_line, rows)])


def response_line(row: Row) -> Sequence[str]:
    """Write a line; the parts are those of the authors, and add up to RT."""
    name = NAMES[row["system"]] + (", Python" if row["model"] == "python" else "")
    parts = in_three(row)
    values = [row["rt_us"], *(parts[part] for part in THREE), row["rt_p50_us"], row["rt_p99_us"]]
    return [str(row["services"]), str(row["clients"]), name, *map(micros, values)]


def languages(rows: Sequence[Row]) -> Grid:
    """A line for each experiment with the Llama: its queue apart from the other parts."""
    heading = ["services", "clients", "tensor_parallel", "requests/s", "RT, ms"]
    heading += ["communication", "queue", "service", "IT"]
    return Grid("a small Llama: means of a request, in ms", heading, [*map(language_line, rows)])


def language_line(row: Row) -> Sequence[str]:
    """Write a line."""
    parts = row["parts_us"]
    times = [row["rt_us"], parts["out"] + parts["back"], parts["queue"], parts["service"]]
    values = [f"{value / 1000:.2f}" for value in (*times, parts["inference"])]
    names = [str(row[name]) for name in ("services", "clients", "tensor_parallel")]
    return [*names, f"{row['value']:.1f}", *values]


def micros(value: float) -> str:
    """Write microseconds with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ---- BT


def bootstraps(rows: Sequence[Row]) -> Grid:
    """A line for each experiment and system."""
    heading = ["model", "services", "ranks of each", "clients", "system", *PHASES, "BT"]
    rows = sorted(rows, key=lambda row: row["system"] != MPISERVE)
    return Grid("BT by phase, in s: medians", heading, [*map(bootstrap_line, rows)])


def bootstrap_line(row: Row) -> Sequence[str]:
    """Write a line; RADICAL-Pilot's is of one service, and it starts them one at a time."""
    names = [row["model"], str(row["services"]), str(row["tensor_parallel"])]
    each = ", each" if row["system"] == RADICAL else ""
    values = [row[f"{phase}_s"] for phase in PHASES] + [row["value"]]
    times = [f"{value:.2f}" for value in values]
    return [*names, str(row["clients"] or ""), NAMES[row["system"]] + each, *times]
