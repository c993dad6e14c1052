"""Write the results of the example: a picture, fields, numbers and a table."""

import json

import h5py
import kinetics
import numpy as np
import transport
from rich.table import Table

from mpiserve import terminal

NAMES = ("temperature", "fuel", "oxidizer")
FRONT = 0.5 * (1.0 + kinetics.BURNT_TEMPERATURE)  # the isotherm that is drawn as the front


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
    draw_temperature(figure, axes[0, 0], result, model[0], "the network (blue: the front before)")
    draw_earlier_fronts(axes[0, 0], result, fields["earlier"])
    if reference is None:
        for unused in axes.flat[1:]:
            unused.set_axis_off()
    else:
        draw_temperature(figure, axes[0, 1], result, reference[0], "LSODA, cell by cell")
        draw_difference(figure, axes[1, 0], result, model[0], reference[0])
        draw_streamlines(axes[1, 0], result)
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


def draw_temperature(figure, axes, result, temperature, text):
    """Draw a temperature field with the front as an isotherm."""
    x, y = centers(result)
    limits = {"vmin": 1.0, "vmax": kinetics.BURNT_TEMPERATURE}
    mesh = axes.pcolormesh(x, y, temperature, cmap="inferno", shading="nearest", **limits)
    axes.contour(x, y, temperature, levels=[FRONT], colors="white", linewidths=1.8)
    figure.colorbar(mesh, ax=axes, label="temperature / fresh-gas temperature")
    decorate(axes, f"Temperature: {text}")


def draw_earlier_fronts(axes, result, earlier):
    """Draw earlier positions of the front, from dotted to solid."""
    x, y = centers(result)
    for temperature, style in zip(earlier, (":", "-.", "--", (0, (8, 2))), strict=True):
        axes.contour(x, y, temperature, levels=[FRONT], colors="deepskyblue", linestyles=[style])


def draw_streamlines(axes, result):
    """Draw the given flow over a field."""
    x, y = centers(result)
    flow = transport.stream_function(x[None, :], y[:, None])
    axes.contour(x, y, flow, levels=24, colors="0.4", linewidths=0.5, linestyles="-")


def draw_difference(figure, axes, result, model, reference):
    """Draw the relative difference of the temperatures."""
    x, y = centers(result)
    difference = 100.0 * (model - reference) / reference
    limit = max(float(np.abs(difference).max()), 1e-9)
    mesh = axes.pcolormesh(
        x, y, difference, cmap="RdBu_r", shading="nearest", vmin=-limit, vmax=limit
    )
    figure.colorbar(mesh, ax=axes, label="(network - reference) / reference, %")
    decorate(axes, "Difference of temperature, and streamlines")


def draw_errors(axes, errors):
    """Draw the largest relative error after each step."""
    times = kinetics.REACTION_TIME * np.arange(1, len(errors) + 1)
    axes.semilogy(times, 100.0 * errors, color="C3", label="largest of all cells")
    axes.axhline(2.0, color="0.4", linestyle="--", label="stated limit")
    axes.set(xlabel="time, flame times", ylabel="relative error of temperature, %")
    axes.set_title("Error over time")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")


def decorate(axes, text):
    """Set title, labels and proportions of a field's axes."""
    axes.set(title=text, xlabel="x, flame thicknesses", ylabel="y, flame thicknesses")
    axes.set_aspect("equal")


def print_table(result, written):
    """Print the result and where the files are."""
    table = Table(title="Reacting flow: network against reference", show_header=False)
    for name, text in rows(result):
        table.add_row(name, text)
    console = terminal.console()
    console.print(table)
    for path in written:
        console.print(f"{path.name}: {path}", highlight=False, soft_wrap=True)


def rows(result):
    """Return the lines of the table."""
    low, high = zip(*(result["bounds_coupled"][name] for name in NAMES), strict=True)
    batch = f"{result['mean_batch_rows']:.0f} rows, {result['mean_rows_per_request']:.0f} a request"
    mpi = " ".join(result["mpi"].split(",")[0].split())
    lines = [
        ("engine", result["engine"].rpartition(".")[2]),
        ("MPI, transport", f"{mpi}, {result['transport']}"),
        ("grid, steps", f"{result['grid'][0]} x {result['grid'][1]}, {result['steps']}"),
        ("temperature within", f"{low[0]:.4f} and {high[0]:.4f}"),
        ("mass fractions within", f"{min(low[1:]):.1e} and {max(high[1:]):.4f}"),
        ("mean batch", f"{batch} ({result['mean_batch_rows_per_request_rows']:.2f} times)"),
        ("RMA aimed at simulation ranks", str(result["simulation_rank_rma_targets"])),
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
