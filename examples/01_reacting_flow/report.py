"""What the example shows of itself: progress, picture, fields, result and a table."""

import json
from contextlib import nullcontext

import h5py
import kinetics
import numpy as np
import transport
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

NAMES = ("temperature", "fuel", "oxidizer")


class Bar:
    """Progress bars on the rank that shows them; a line now and then where there is no terminal."""

    def __init__(self, shown):
        self._shown = shown
        self._console = Console()
        live = shown and self._console.is_terminal
        self._progress = self._bars() if live else None
        self._text, self._steps, self._done, self._task = "", 0, 0, None

    def _bars(self):
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn())
        return Progress(*columns, TimeElapsedColumn(), console=self._console)

    def __enter__(self):
        (self._progress or nullcontext()).__enter__()
        return self

    def __exit__(self, *error):
        (self._progress or nullcontext()).__exit__(*error)

    def begin(self, text, steps):
        """Start a new bar."""
        self._text, self._steps, self._done = text, steps, 0
        if self._progress:
            self._task = self._progress.add_task(text, total=steps)

    def step(self):
        """Advance the newest bar by one."""
        self._done += 1
        if self._progress:
            self._progress.advance(self._task)
        elif self._shown and self._done * 5 // self._steps > (self._done - 1) * 5 // self._steps:
            self._console.print(f"{self._text}: step {self._done} of {self._steps}")


def write(folder, result, fields, *, picture=True):
    """Write result.json, fields.h5 and picture.png into `folder` and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    write_fields(folder / "fields.h5", result, fields)
    written = [folder / "result.json", folder / "fields.h5"]
    if picture:
        written.insert(0, folder / "picture.png")
        draw(written[0], result, fields)
    print_table(result, written)


def write_fields(path, result, fields):
    """Write final fields and errors as HDF5."""
    with h5py.File(path, "w") as file:
        file.attrs.update(steps=result["steps"], time=result["time"], engine=result["engine"])
        for axis, points in zip("xy", centers(result), strict=True):
            file[axis] = points
        for run in ("model", "reference"):
            if run in fields:
                for name, field in zip(NAMES, fields[run], strict=True):
                    file[f"{run}/{name}"] = field
        if "errors" in fields:
            file["max_rel_error_temperature"] = fields["errors"]
            file["max_rel_error_temperature"].attrs["dimension"] = "step"


def centers(result):
    """Return x and y of the cell centres of the whole grid."""
    lengths = zip(transport.LENGTH, result["grid"], strict=True)
    return [(np.arange(n) + 0.5) * length / n for length, n in lengths]


def draw(path, result, fields):
    """Draw the temperature of both runs, their difference and the error over time."""
    from matplotlib.figure import Figure  # a second of import that only this rank needs

    figure = Figure(figsize=(12.5, 8.6), layout="constrained")
    axes = figure.subplots(2, 2)
    model, reference = fields["model"], fields.get("reference")
    draw_temperature(figure, axes[0, 0], result, model, "network, served by DeepSpeed")
    draw_streamlines(axes[0, 0], result)
    if reference is None:
        for unused in axes.flat[1:]:
            unused.set_axis_off()
    else:
        draw_temperature(figure, axes[0, 1], result, reference, "reference, LSODA cell by cell")
        draw_difference(figure, axes[1, 0], result, model[0], reference[0])
        draw_errors(axes[1, 1], fields["errors"])
    figure.suptitle(title(result))
    figure.savefig(path, dpi=130)


def title(result):
    """Return the line above the picture."""
    nx, ny = result["grid"]
    text = f"Premixed flame in vortices, t = {result['time']:.2f} flame times, {nx} x {ny} cells"
    if result["speedup"]:
        text += f": the coupled step is {result['speedup']:.0f} times faster than the reference"
    return text


def front(field):
    """Return how far the fuel's local mixture has burnt, from 0 to 1, for the front's contour."""
    temperature, fuel, oxidizer = field
    limiting = np.minimum(fuel, oxidizer / kinetics.OXIDIZER_PER_FUEL)
    heat = kinetics.HEAT_RELEASE * limiting
    return (temperature - 1.0) / np.maximum(temperature - 1.0 + heat, 1e-12)


def draw_temperature(figure, axes, result, field, text):
    """Draw a temperature field with the front, where half of the mixture has burnt."""
    x, y = centers(result)
    levels = {"vmin": 1.0, "vmax": kinetics.BURNT_TEMPERATURE + 0.2}
    mesh = axes.pcolormesh(x, y, field[0], cmap="inferno", shading="nearest", **levels)
    axes.contour(x, y, front(field), levels=[0.5], colors="white", linewidths=1.6)
    figure.colorbar(mesh, ax=axes, label="temperature / fresh-gas temperature")
    decorate(axes, f"Temperature: {text}")


def draw_streamlines(axes, result):
    """Draw the given flow over a field."""
    x, y = centers(result)
    flow = transport.stream_function(x[None, :], y[:, None])
    axes.contour(x, y, flow, levels=24, colors="white", linewidths=0.4, alpha=0.45)


def draw_difference(figure, axes, result, model, reference):
    """Draw the relative difference of the temperatures."""
    x, y = centers(result)
    difference = 100.0 * (model - reference) / reference
    limit = max(float(np.abs(difference).max()), 1e-9)
    mesh = axes.pcolormesh(
        x, y, difference, cmap="RdBu_r", shading="nearest", vmin=-limit, vmax=limit
    )
    figure.colorbar(mesh, ax=axes, label="(network - reference) / reference, %")
    decorate(axes, "Difference of temperature at the end")


def draw_errors(axes, errors):
    """Draw the largest relative error after each step."""
    times = kinetics.REACTION_TIME * np.arange(1, len(errors) + 1)
    axes.plot(times, 100.0 * errors, color="C3", label="largest of all cells")
    axes.axhline(2.0, color="0.4", linestyle="--", label="stated limit")
    axes.set(xlabel="time, flame times", ylabel="relative error of temperature, %")
    axes.set_title("Error over time")
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend()


def decorate(axes, text):
    """Set title, labels and proportions of a field's axes."""
    axes.set(title=text, xlabel="x, flame thicknesses", ylabel="y, flame thicknesses")
    axes.set_aspect("equal")


def print_table(result, written):
    """Print the result and where the files are."""
    table = Table(title="Reacting flow: network against reference", show_header=False)
    for name, text in rows(result):
        table.add_row(name, text)
    for path in written:
        table.add_row(path.name, str(path))
    Console(soft_wrap=True).print(table)


def rows(result):
    """Return the lines of the table."""
    fuel, oxidizer = (result["bounds_coupled"][name] for name in NAMES[1:])
    lines = [
        ("engine", result["engine"]),
        ("MPI, transport", f"{result['mpi']}, {result['transport']}"),
        ("grid, steps", f"{result['grid'][0]} x {result['grid'][1]}, {result['steps']}"),
        ("mass fractions within", f"fuel {fuel}, oxidizer {oxidizer}"),
        ("batch rows / request rows", f"{result['mean_batch_rows_per_request_rows']:.2f}"),
        ("simulation ranks as RMA targets", str(result["simulation_rank_rma_targets"])),
        ("coupled step", f"{1e3 * result['seconds_per_step_coupled']:.2f} ms"),
    ]
    return lines + (reference_rows(result) if result["speedup"] else [])


def reference_rows(result):
    """Return the lines that compare with the reference."""
    error = 100.0 * result["max_rel_error_temperature"]
    return [
        ("reference step", f"{1e3 * result['seconds_per_step_reference']:.1f} ms"),
        ("speed-up of the step", f"{result['speedup']:.1f}"),
        ("max. relative error, temperature", f"{error:.3f} %"),
    ]
