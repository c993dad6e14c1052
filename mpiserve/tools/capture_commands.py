"""The command line of `capture`; importing it costs nothing."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at, merge and export what a job has captured.")
Path = Annotated[
    str, typer.Argument(metavar="PATH", help="The folder of a capture, or a file of it.")
]
Service = Annotated[str | None, typer.Option(help="Only this one; by default all.")]


@app.command()
def info(path: Path) -> None:
    """Print the services, their tensors, and how many rows of which ranks there are."""
    from mpiserve.tools import capture as program

    raise typer.Exit(program.info(path))


@app.command()
def merge(
    path: Path,
    output: Annotated[str, typer.Option("-o", metavar="FILE.h5", help="The new file.")],
    compression: Annotated[
        str, typer.Option(help="none, gzip, lzf, or a filter of hdf5plugin.")
    ] = "none",
) -> None:
    """Write all rows into one file, also those of a job that was killed."""
    from mpiserve.tools import capture as program

    raise typer.Exit(program.merge(path, output, compression))


@app.command()
def export(
    path: Path,
    output: Annotated[
        str, typer.Option("-o", metavar="FILE", help="The new file: .npz, .parquet or .zarr.")
    ],
    service: Service = None,
    source: Annotated[
        str | None, typer.Option(help="Only rows of the model, or of the physics; by default both.")
    ] = None,
) -> None:
    """Write the rows of a service for numpy, Parquet or Zarr: each tensor, each column."""
    from mpiserve.tools import capture_export as program

    raise typer.Exit(program.export(path, output, service, source))


def replay(
    path: Path,
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="By default the one of the job that made PATH."),
    ] = None,
    version: Annotated[str, typer.Option(help="Of the models, in place of {version}.")] = "",
    worst: Annotated[int, typer.Option(min=0, metavar="N", help="Rows to list.")] = 5,
    picture: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the differences into it, such as FILE.png."),
    ] = None,
) -> None:
    """Run the batches of a capture again, without MPI, and show how the answers differ."""
    from mpiserve.tools import replay as program

    raise typer.Exit(program.replay(path, config, version, worst, picture))
