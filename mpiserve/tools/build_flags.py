"""Find the installed files for C, C++ and Fortran programs, and the flags to build with them.

Pure functions of the files of the package; no MPI.
"""

from __future__ import annotations

from pathlib import Path

from mpiserve.errors import Code, Error

PREFIX = Path(__file__).parents[1]
LIB = PREFIX / "lib"
INCLUDE = PREFIX / "include"
FORTRAN = PREFIX / "share/mpiserve/fortran"


def cflags() -> str:
    """Return the flags for the compiler of C and C++."""
    return f"-I{INCLUDE}"


def libs() -> str:
    """Return the flags for the linker of C and C++ programs, with the path for run time."""
    return f"-L{LIB} -lmpiserve -Wl,-rpath,{LIB}"


def fflags() -> str:
    """Return the flags for the Fortran compiler.

    Raises:
        Error: With code ENOTFOUND, if the module was not built.
    """
    _require(INCLUDE / "mpiserve.mod", f"compile {FORTRAN}/* with your program")
    return f"-I{INCLUDE}"


def flibs() -> str:
    """Return the flags for the linker of Fortran programs.

    Raises:
        Error: With code ENOTFOUND, if the module was not built.
    """
    _require(LIB / "libmpiserve_fortran.so", f"compile {FORTRAN}/* with your program")
    return f"-L{LIB} -lmpiserve_fortran -lmpiserve -Wl,-rpath,{LIB}"


def cmake_dir() -> str:
    """Return the folder for CMake's mpiserve_DIR."""
    return str(LIB / "cmake/mpiserve")


def pkg_config_dir() -> str:
    """Return the folder for PKG_CONFIG_PATH."""
    return str(LIB / "pkgconfig")


def world() -> str:
    """Return the library to preload into codes that use MPI_COMM_WORLD.

    Raises:
        Error: With code ENOTFOUND, if it was not built.
    """
    library = LIB / "libmpiserve_world.so"
    if not library.exists():
        text = f"{library.name} was not built: build mpiserve again, where python3 is on PATH"
        raise Error(Code.ENOTFOUND, text)
    return str(library)


def _require(file: Path, remedy: str) -> None:
    if not file.exists():
        text = f"{file.name} was not built: install gfortran and build mpiserve again, or {remedy}"
        raise Error(Code.ENOTFOUND, text)
