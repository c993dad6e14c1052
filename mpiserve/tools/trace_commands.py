"""The command line of `trace`; importing it costs nothing."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Show what a job with MPISERVE_PROFILE=trace did.")
TraceFolders = Annotated[
    list[str],
    typer.Argument(
        metavar="FOLDER...", help="mpiserve-profile.parts; several, if nodes share no folder."
    ),
]


@app.command()
def merge(
    folders: TraceFolders,
    output: Annotated[
        str | None, typer.Option("-o", metavar="FILE", help="By default mpiserve-trace.json.")
    ] = None,
) -> None:
    """Merge the traces of the ranks into one file for Perfetto; clocks of nodes are aligned."""
    from mpiserve.tools import trace as program

    raise typer.Exit(program.merge(folders, output))


@app.command()
def view(
    folders: TraceFolders,
    slowest: Annotated[int, typer.Option(min=0, metavar="N", help="Requests to list.")] = 10,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Draw it too, with matplotlib.")
    ] = None,
) -> None:
    """Print which requests took longest, and whom they waited for."""
    from mpiserve.tools import trace as program

    raise typer.Exit(program.view(folders, slowest, picture))


@app.command()
def export(
    folders: TraceFolders,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL", help="Spans of OpenTelemetry, as OTLP/JSON, or to a collector."
        ),
    ] = None,
    chrome: Annotated[
        str | None, typer.Option(metavar="FILE", help="For Perfetto, as merge.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="All of it, as JSON.")] = None,
) -> None:
    """Write the trace for other programs."""
    from mpiserve.tools import trace as program

    raise typer.Exit(program.export(folders, otlp, chrome, json))
