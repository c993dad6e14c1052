"""Pictures of the experiments, in the form of the authors: stacked bars of BT and RT, rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.bench.paper.figures import (
    AUTHORS,
    BOOTSTRAP,
    CASE,
    MPISERVE,
    NAMES,
    PHASES,
    RADICAL,
    SYSTEMS,
    Row,
    in_three,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"mpiserve": "#1971c2", "zeromq": "#b0712f", "radical": "#7b5ea7"}
PART_COLORS = ("#74a9d8", "#e0a458", "#2b8a3e")
CLIENTS = 16
Parts = dict[str, float]
# How experiments are chosen, and how many clients each number of services has.
SCALINGS: dict[str, Callable[[Row], bool]] = {
    "strong: 16 clients": lambda row: row["clients"] == CLIENTS,
    "weak: clients = services": lambda row: row["clients"] == row["services"],
}


def draw(rows: Sequence[Row], folder: Path, heading: str) -> list[Path]:
    """Draw the pictures that there are rows for, in matplotlib's present style."""
    nothing = [row for row in rows if row["case"] == CASE and row["model"] == "noop"]
    llamas = [row for row in rows if row["case"] == CASE and row["model"] == "llama"]
    booted = [row for row in rows if row["case"] == BOOTSTRAP]
    drawn = []
    for draw_one, chosen in (
        *((rates, nothing), (responses, nothing)),
        *((languages, llamas), (bootstraps, booted)),
    ):
        if chosen:
            drawn.append(draw_one(chosen, folder, heading))
    return drawn


def finished(figure: Any, path: Path, title: str, heading: str) -> Path:
    """Write a picture with its title."""
    from matplotlib import pyplot

    figure.suptitle(f"{title}\n{heading}", x=0.01, ha="left")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def legend(figure: Any, panels: Iterable[Axes]) -> None:
    """Name what is drawn, once for all panels."""
    known = [axes.get_legend_handles_labels() for axes in panels]
    named = {
        name: handle
        for handles, names in known
        for handle, name in zip(handles, names, strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside right upper")


# ---- rates


def rates(rows: Sequence[Row], folder: Path, heading: str) -> Path:
    """Draw requests per second over services: a line for each system."""
    from matplotlib import pyplot

    ways = [(title, wanted) for title, wanted in SCALINGS.items() if any(map(wanted, rows))]
    figure, panels = pyplot.subplots(
        1,
        len(ways),
        figsize=(2 + 4.5 * len(ways), 4.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (title, wanted) in zip(panels.flat, ways, strict=True):
        chosen = [row for row in rows if wanted(row)]
        for system in SYSTEMS:
            line(axes, [row for row in chosen if row["system"] == system], system)
        authors(axes, [row for row in chosen if row["system"] == MPISERVE])
        axes.set(title=title, xscale="log", yscale="log", xlabel="services")
        ticks(axes, sorted({row["services"] for row in chosen}))
        axes.grid(True, axis="y")
    panels[0][0].set_ylabel("requests/s")
    legend(figure, panels.flat)
    return finished(figure, folder / "paper_rates.png", "A service that does nothing", heading)


def line(axes: Axes, rows: Sequence[Row], system: str) -> None:
    """Draw a system's line."""
    if rows:
        points = sorted((row["services"], row["value"]) for row in rows)
        services, values = zip(*points, strict=True)
        axes.plot(services, values, "o-", color=COLORS[system], label=NAMES[system])


def authors(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw what the authors measured of the same experiments, on their machine."""
    keys = {(row["services"], row["clients"]) for row in rows} & AUTHORS.keys()
    points = sorted((services, AUTHORS[services, clients]) for services, clients in keys)
    if points:
        services, values = zip(*points, strict=True)
        axes.plot(services, values, "*", color="#52606d", markersize=10, label="the authors")


def ticks(axes: Axes, services: Sequence[int]) -> None:
    """Name the numbers of services."""
    from matplotlib.ticker import NullLocator

    axes.set_xticks(services, list(map(str, services)))
    axes.xaxis.set_minor_locator(NullLocator())


# ---- stacked bars


def stack(axes: Axes, names: Sequence[str], bars: Sequence[Parts], scale: float) -> None:
    """Draw a bar for each of some sums of parts."""
    bottom = [0.0] * len(bars)
    for color, part in zip(PART_COLORS, bars[0], strict=True):
        heights = [bar[part] * scale for bar in bars]
        axes.bar(list(names), heights, 0.65, bottom=bottom, color=color, label=part)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.grid(True, axis="y")
    axes.tick_params(length=0)


def responses(rows: Sequence[Row], folder: Path, heading: str) -> Path:
    """Draw RT by part over services: a panel for each system and way of scaling."""
    from matplotlib import pyplot

    systems = [one for one in SYSTEMS if any(row["system"] == one for row in rows)]
    ways = [(title, wanted) for title, wanted in SCALINGS.items() if any(map(wanted, rows))]
    size = (2 + 3.2 * len(systems), 1 + 2.8 * len(ways))
    figure, panels = pyplot.subplots(
        len(ways), len(systems), figsize=size, squeeze=False, layout="constrained"
    )
    for line_of_panels, (title, wanted) in zip(panels, ways, strict=True):
        for axes, system in zip(line_of_panels, systems, strict=True):
            mine = [row for row in rows if wanted(row) and row["system"] == system]
            mine.sort(key=lambda row: row["services"])
            if mine:
                stack(axes, [str(row["services"]) for row in mine], [*map(in_three, mine)], 1.0)
            axes.set(title=f"{NAMES[system]}\n{title}", xlabel="services")
        line_of_panels[0].set_ylabel("RT, mean, µs")
    legend(figure, panels.flat)
    return finished(figure, folder / "paper_rt.png", "Response time by part", heading)


def languages(rows: Sequence[Row], folder: Path, heading: str) -> Path:
    """Draw RT of the Llama by part."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    asked = ["1 client" if row["clients"] == 1 else f"{row['clients']} clients" for row in rows]
    names = [
        f"{row['services']} × {row['tensor_parallel']} rank, {clients}"
        for row, clients in zip(rows, asked, strict=True)
    ]
    stack(axes, names, [*map(in_three, rows)], 1e-3)
    axes.tick_params(axis="x", rotation=15)
    axes.set_ylabel("RT, mean, ms")
    axes.legend()
    return finished(figure, folder / "paper_llama.png", "A small Llama: RT and IT", heading)


def bootstraps(rows: Sequence[Row], folder: Path, heading: str) -> Path:
    """Draw BT by phase, of experiments with as many clients as services, and of RADICAL-Pilot."""
    from matplotlib import pyplot

    chosen = [row for row in rows if row["clients"] in (row["services"], 0)]
    groups = [
        [row for row in chosen if (row["model"] == "llama") == slow] for slow in (False, True)
    ]
    groups = [group for group in groups if group]
    wide = {"width_ratios": [len(group) + 1 for group in groups]}
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(11, 4.4), squeeze=False, gridspec_kw=wide, layout="constrained"
    )
    for axes, group in zip(panels.flat, groups, strict=True):
        bars = [{phase: row[f"{phase}_s"] for phase in PHASES} for row in group]
        stack(axes, [*map(bootstrap_name, group)], bars, 1.0)
    panels[0][0].set_ylabel("BT, s")
    legend(figure, panels.flat)
    return finished(figure, folder / "paper_bt.png", "Bootstrap time by phase", heading)


def bootstrap_name(row: Row) -> str:
    """Name a bar."""
    if row["system"] == RADICAL:
        return "RADICAL-\nPilot, one"
    ranks = f" × {row['tensor_parallel']}" if row["tensor_parallel"] > 1 else ""
    return f"{row['services']}{ranks}\n{row['model']}"
