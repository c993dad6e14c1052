"""Check that MPI is the one that mpiserve was built for, and that the launcher belongs to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mpiserve.errors import Code, Error
from mpiserve.mpi import families

# The variables in which launchers give the size and the rank.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("PALS_SIZE", "PALS_RANKID"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)

_ABI = "MPI ABI"  # the binary interface of MPI 5, which is one for all vendors

_VENDORS = (
    ("Open MPI", r"Open MPI v?(\d+)"),
    ("Intel MPI", r"Intel\(R\) MPI Library\D*(\d+)"),
    ("Cray MPICH", r"CRAY MPICH\D*(\d+)"),
    ("MVAPICH", r"MVAPICH\d?\D*(\d+)"),
    ("MPICH", r"MPICH\D*(\d+)"),
)


# pip and uv cache the wheels that they build, and do not know about MPI.
REBUILD = (
    "MPICC=... pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation "
    "--no-binary mpiserve mpiserve"
)


def vendor(text: str) -> tuple[str, str]:
    """Find the vendor and the major version in the version text of an MPI library."""
    for name, pattern in _VENDORS:
        found = re.search(pattern, text)
        if found:
            return name, found.group(1)
    return short(text), ""


def short(text: str) -> str:
    """Shorten the version text of a library to one line."""
    first = re.split(r"[\n,]", text.strip())[0]
    return re.sub(r"\s+", " ", first)[:60]


def mpi_mismatch(build: str, runtime: str, *, by_family: bool = True) -> str | None:
    """Say what is wrong if mpiserve was built for another MPI than the one loaded.

    A build for several MPIs goes with each version of their families. Two libraries that one
    process has loaded must be the same: there `by_family` is false. A build for the binary
    interface of MPI 5 goes with each MPI by that interface.
    """
    if _ABI in build and _ABI in runtime and by_family:
        return None
    alike = (_ABI in build) == (_ABI in runtime)
    if alike and vendor(build) == vendor(runtime):
        return None
    if alike and by_family and families.built() and _family(build) == _family(runtime):
        return None
    debian = ', for Debian\'s with the link that "MPICH of Debian" of docs/guide/install.md shows,'
    return (
        f"mpiserve was built with {short(build)}, but runs with {short(runtime)}: "
        f"start it with the MPI that it was built with{debian if 'MPICH' in build else ''} "
        f"or rebuild it: {REBUILD}"
    )


def _family(text: str) -> str:
    name = vendor(text)[0]
    return "mpich" if name in ("Intel MPI", "Cray MPICH", "MVAPICH", "MPICH") else name


def launched(environ: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Read the launcher's variables: the name of the size's variable, the size and the rank."""
    for size, rank in _LAUNCHERS:
        if environ.get(size, "").isdigit():
            number = environ.get(rank, "")
            return size, int(environ[size]), int(number) if number.isdigit() else 0
    return None


def world_mismatch(world_size: int, library: str, environ: Mapping[str, str]) -> str | None:
    """Say what is wrong if a launcher started several ranks and MPI sees only one."""
    launch = launched(environ)
    if world_size > 1 or launch is None or launch[1] <= 1:
        return None
    variable, size, _ = launch
    return (
        f"the world has 1 rank, but the launcher started {size} ({variable}={size}): "
        f"use the launcher of the MPI library in use, {short(library)}"
    )


def library(mpi: Any) -> str:
    """Describe the MPI library that mpi4py has loaded; `mpi` is the module mpi4py.MPI."""
    text = str(mpi.Get_library_version())
    return f"{short(text)} ({_ABI})" if mpi.Get_abi_version()[0] > 0 else text


def thread_level(mpi: Any) -> str:
    """Name the thread level of MPI; `mpi` is the module mpi4py.MPI."""
    names = ("single", "funneled", "serialized", "multiple")
    return {getattr(mpi, f"THREAD_{name.upper()}"): name for name in names}[mpi.Query_thread()]


def require(problem: str | None) -> None:
    """Raise an error with code EVERSION, if a check found a problem.

    Raises:
        Error: With code EVERSION.
    """
    if problem:
        raise Error(Code.EVERSION, problem)
