"""Draw a report: round trips over size, throughput over clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mpiserve.bench.paper import plots as paper
from mpiserve.bench.paper import tables
from mpiserve.bench.report import size_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

INK, MUTED, GRID = "#1f2933", "#52606d", "#e4e7eb"
STYLE: Any = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


class Line(NamedTuple):
    """A line of the latency plot: its rows and its style."""

    name: str
    rows: Row
    color: str
    dashes: str = "-"
    marker: str = "o"
    width: float = 1.6


RIVALS = (
    Line("Redis list", {"case": "redis"}, "#8a94a0", "-", "s"),
    Line("ZeroMQ REQ/REP", {"case": "zeromq"}, "#b0712f", "-", "D"),
    Line("mpi4py Send/Recv", {"case": "send_recv_mpi4py"}, "#7b5ea7", "-", "v"),
    Line("MPI Send/Recv in C", {"case": "send_recv_c"}, "#7b5ea7", "--", "^"),
)
OURS = (
    Line("mpiserve, Python, torch", {"client": "python", "backend": "torch"}, "#2b8a3e", "-", "o"),
    Line("mpiserve, Python, echo", {"client": "python", "backend": "echo"}, "#1971c2", "--", "o"),
    Line("mpiserve, C, echo", {"client": "c", "backend": "echo"}, "#1971c2", "-", "o", 2.4),
)
IN_PLACE = Line(
    "mpiserve, C, echo, in place", {"client": "c", "backend": "echo"}, "#0b7285", ":", "o", 2.0
)
FLOORS = (
    Line("RMA floor", {"case": "floor_rma"}, INK, "--", "", 1.4),
    Line("flag floor", {"case": "floor_flag"}, INK, "", "*"),
)
SYSTEMS = {"mpiserve": ("mpiserve", "#1971c2"), "zeromq": ("ZeroMQ worker", "#b0712f")}


def draw(report: Row, folder: Path) -> list[Path]:
    """Draw the plots that the report has rows for, and write the tables of the case paper."""
    import matplotlib

    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        if any("p50_us" in row for row in report["rows"]):
            drawn.append(latency(report, folder / "latency.png"))
        if any(row["case"] == "throughput" for row in report["rows"]):
            drawn.append(throughput(report, folder / "throughput.png"))
        drawn += paper.draw(report["rows"], folder, where(report))
    if any(row["case"].startswith("paper") for row in report["rows"]):
        drawn.append(tables.write(report["rows"], folder / "paper.md"))
    return drawn


def latency(report: Row, path: Path) -> Path:
    """Draw the medians over size, one panel per transport."""
    from matplotlib import pyplot

    rows = [row for row in report["rows"] if "p50_us" in row and "model" not in row]
    figure, panels = pyplot.subplots(1, 2, figsize=(12.5, 6), sharey=True, layout="constrained")
    for axes, transport in zip(panels, ("shared", "rma"), strict=True):
        for line in (*RIVALS, *lines_of(transport), *FLOORS):
            plot_line(axes, rows, line)
        finish_latency(axes, sorted({row["bytes"] for row in rows}), transport)
    panels[0].set_ylabel("round trip, median")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", labelspacing=0.9)
    figure.suptitle(
        heading("One client, one server, as many bytes back", report), x=0.01, ha="left"
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def lines_of(transport: str) -> list[Line]:
    """Return the lines of a panel."""
    user = {"case": "mpiserve", "transport": transport, "memory": "user"}
    lines = [line._replace(rows=user | line.rows) for line in OURS]
    return [*lines, IN_PLACE._replace(rows=user | IN_PLACE.rows | {"memory": "in_place"})]


def points(rows: list[Row], wanted: Row) -> list[tuple[int, float]]:
    """Return (bytes, p50) of the rows with the wanted values."""
    found = [row for row in rows if wanted.items() <= row.items()]
    return sorted((row["bytes"], row["p50_us"]) for row in found)


def plot_line(axes: Axes, rows: list[Row], line: Line) -> None:
    """Draw a line, if there are rows for it."""
    found = points(rows, line.rows)
    if found:
        sizes, medians = zip(*found, strict=True)
        style: Row = {
            "color": line.color,
            "linestyle": line.dashes or "none",
            "linewidth": line.width,
        }
        axes.plot(sizes, medians, label=line.name, marker=line.marker, markersize=5, **style)


def finish_latency(axes: Axes, sizes: list[int], transport: str) -> None:
    """Scale and name the axes of a panel."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [size_name(size) for size in sizes], rotation=30)
    axes.xaxis.set_minor_locator(_none())
    axes.yaxis.set_major_formatter(lambda micros, _: duration(micros))
    axes.tick_params(length=0, which="both")
    axes.grid(True, which="major")
    axes.set_title(f"mpiserve over {transport}")
    axes.set_xlabel("bytes each way")


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def duration(micros: float) -> str:
    """Write microseconds with a suitable unit."""
    for unit, name in ((1e6, "s"), (1e3, "ms"), (1, "µs")):
        if micros >= unit:
            return f"{micros / unit:g} {name}"
    return f"{micros * 1000:g} ns"


def throughput(report: Row, path: Path) -> Path:
    """Draw rows per second over clients, with those of the network in process."""
    from matplotlib import pyplot

    rows = [row for row in report["rows"] if row["case"] == "throughput"]
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    systems = [name for name in SYSTEMS if any(row["system"] == name for row in rows)]
    for position, system in enumerate(systems):
        plot_bars(axes, [row for row in rows if row["system"] == system], position, len(systems))
    for row in report["rows"]:
        if row["case"] == "batch_efficiency" and not row["bind"]:
            plot_references(axes, row)
    finish_throughput(axes, sorted({row["clients"] for row in rows}))
    title = f"Rows per second, {rows[0]['rows']} rows of each client a step"
    figure.suptitle(heading(title, report), x=0.01, ha="left")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def plot_bars(axes: Axes, rows: list[Row], position: int, systems: int) -> None:
    """Draw the bars of one system beside those of the others."""
    name, color = SYSTEMS[rows[0]["system"]]
    width = 0.7 / systems
    middle = [row["clients"] + (position - (systems - 1) / 2) * width for row in rows]
    heights = [row["value"] / 1000 for row in rows]
    bars = axes.bar(middle, heights, width * 0.92, color=color, label=name)
    # On white, since the lines of the references are behind.
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    texts = [f"{height:.0f} k" for height in heights]
    axes.bar_label(bars, texts, padding=3, fontsize=8.5, color=color, bbox=box)


def plot_references(axes: Axes, row: Row) -> None:
    """Draw lines for the same network in process."""
    for key, name, dashes in (
        ("in_process_rows_per_s", f"in process, chunks of {row['in_process_chunk']}", "--"),
        ("in_process_naive_rows_per_s", "in process, one call", ":"),
    ):
        axes.axhline(row[key] / 1000, color=INK, linestyle=dashes, linewidth=1.3, label=name)


def finish_throughput(axes: Axes, clients: list[int]) -> None:
    """Name the axes, and make room for the legend."""
    axes.set_xticks(clients)
    axes.set_xlabel("clients")
    axes.set_ylabel("thousand rows per second")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.18)
    axes.tick_params(length=0)
    axes.grid(True, axis="y")
    axes.legend(loc="upper left", ncols=2)


def heading(title: str, report: Row) -> str:
    """Return the title, with a line about the machine."""
    return f"{title}\n{where(report)}"


def where(report: Row) -> str:
    """Describe the machine of a report in a line."""
    machine = report["machine"]
    return f"{report['mpi']}, {machine['cores']} cores, {machine['cpu']}"
