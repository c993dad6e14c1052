"""The program `info`: versions, and the MPI of this environment."""

from __future__ import annotations

import os
import sys
from importlib import metadata

from mpiserve import __version__, terminal
from mpiserve.errors import Error


def info() -> None:
    """Print them, on rank 0."""
    from mpi4py import MPI
    from rich.table import Table

    rows = [("mpiserve", __version__), *_mpi_rows(), ("Python", sys.version.split()[0])]
    rows += [(name, _version(name)) for name in ("mpi4py", "numpy", "torch", "deepspeed")]
    if MPI.COMM_WORLD.rank > 0:
        return
    table = Table(show_header=False)
    for row in rows:
        table.add_row(*row)
    width = max(80, max(len(value) for _, value in rows) + 30)
    terminal.console(width=width).print(table)


def _mpi_rows() -> list[tuple[str, str]]:
    from mpi4py import MPI

    from mpiserve.mpi import check

    runtime = check.library(MPI)
    rows = [
        ("MPI library", check.short(runtime)),
        ("thread level", check.thread_level(MPI)),
        ("world", f"{MPI.COMM_WORLD.size} rank(s)"),
        ("transport", f"{os.environ.get('MPISERVE_TRANSPORT', 'auto')} (of shared, rma)"),
    ]
    return [*_build_rows(runtime), *rows]


def _build_rows(runtime: str) -> list[tuple[str, str]]:
    from mpi4py import MPI

    from mpiserve.mpi import check

    try:
        from mpiserve._lib import core
    except (ImportError, Error) as error:
        return [("built with", f"not built, or not for this MPI: {error}")]
    problems = (
        check.mpi_mismatch(core.mpi_build(), runtime),
        check.world_mismatch(MPI.COMM_WORLD.size, runtime, os.environ),
    )
    rows = [("built with", check.short(core.mpi_build()))]
    return rows + [("problem", problem) for problem in problems if problem]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
