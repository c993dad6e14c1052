"""Find the installed files for C, C++ and Fortran programs, and the flags to build with them.

They are those for the MPI that mpi4py loads, if mpiserve is built for several (mpi/families); MPI
is not started.
"""

from __future__ import annotations

from pathlib import Path

from mpiserve.errors import Code, Error
from mpiserve.mpi import families

FORTRAN = families.PACKAGE / "share/mpiserve/fortran"


def _lib() -> Path:
    return families.prefix() / "lib"


def _include() -> Path:
    return families.prefix() / "include"


def cflags() -> str:
    """Return the flags for the compiler of C and C++."""
    return f"-I{_include()}"


def libs() -> str:
    """Return the flags for the linker of C and C++ programs, with the path for run time."""
    return f"-L{_lib()} -lmpiserve -Wl,-rpath,{_lib()}"


def fflags() -> str:
    """Return the flags for the Fortran compiler.

    Raises:
        Error: With code ENOTFOUND, if the module was not built.
    """
    _require(_include() / "mpiserve.mod", f"compile {FORTRAN}/* with your program")
    return f"-I{_include()}"


def flibs() -> str:
    """Return the flags for the linker of Fortran programs.

    Raises:
        Error: With code ENOTFOUND, if the module was not built.
    """
    _require(_lib() / "libmpiserve_fortran.so", f"compile {FORTRAN}/* with your program")
    return f"-L{_lib()} -lmpiserve_fortran -lmpiserve -Wl,-rpath,{_lib()}"


def cmake_dir() -> str:
    """Return the folder for CMake's mpiserve_DIR."""
    return str(_lib() / "cmake/mpiserve")


def pkg_config_dir() -> str:
    """Return the folder for PKG_CONFIG_PATH."""
    return str(_lib() / "pkgconfig")


def world() -> str:
    """Return the library to preload into codes that use MPI_COMM_WORLD.

    Raises:
        Error: With code ENOTFOUND, if it was not built.
    """
    library = _lib() / "libmpiserve_world.so"
    if not library.exists():
        text = f"{library.name} was not built: build mpiserve again, where python3 is on PATH"
        raise Error(Code.ENOTFOUND, text)
    return str(library)


def _require(file: Path, remedy: str) -> None:
    if not file.exists():
        text = f"{file.name} was not built: install gfortran and build mpiserve again, or {remedy}"
        raise Error(Code.ENOTFOUND, text)
