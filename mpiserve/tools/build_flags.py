"""Where the parts for C, C++ and Fortran programs are, and the flags that compile with them.

Pure functions of the files that lie in the package; no MPI.
"""

from __future__ import annotations

from pathlib import Path

from mpiserve.errors import Code, Error

PREFIX = Path(__file__).parents[1]
LIB = PREFIX / "lib"
INCLUDE = PREFIX / "include"
FORTRAN = PREFIX / "share/mpiserve/fortran"


def cflags() -> str:
    """Flags for the compiler of C and C++."""
    return f"-I{INCLUDE}"


def libs() -> str:
    """Flags for the linker of C and C++ programs, which then find the library at run time."""
    return f"-L{LIB} -lmpiserve -Wl,-rpath,{LIB}"


def fflags() -> str:
    """Flags for the Fortran compiler.

    Raises:
        Error: With code ENOTFOUND, if the module was not built.
    """
    _require(INCLUDE / "mpiserve.mod", f"compile {FORTRAN}/* with your program")
    return f"-I{INCLUDE}"


def flibs() -> str:
    """Flags for the linker of Fortran programs.

    Raises:
        Error: With code ENOTFOUND, if the module was not built.
    """
    _require(LIB / "libmpiserve_fortran.so", f"compile {FORTRAN}/* with your program")
    return f"-L{LIB} -lmpiserve_fortran -lmpiserve -Wl,-rpath,{LIB}"


def cmake_dir() -> str:
    """The folder for CMake's mpiserve_DIR."""
    return str(LIB / "cmake/mpiserve")


def pkg_config_dir() -> str:
    """The folder for PKG_CONFIG_PATH."""
    return str(LIB / "pkgconfig")


def world() -> str:
    """The library for LD_PRELOAD of codes that say MPI_COMM_WORLD.

    Raises:
        Error: With code ENOTFOUND, if it was not built.
    """
    library = LIB / "libmpiserve_world.so"
    if not library.exists():
        raise Error(Code.ENOTFOUND, f"{library.name} was not built: that takes python3")
    return str(library)


def _require(file: Path, remedy: str) -> None:
    if not file.exists():
        text = f"{file.name} was not built: install gfortran and build mpiserve anew, or {remedy}"
        raise Error(Code.ENOTFOUND, text)
