"""The library and the module as `make -C csrc install` makes them, with a compiler of one's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from jobs import ROOT, Target

FLANGS = (
    "flang",
    "flang-new",
    *(f"{name}-{n}" for n in range(22, 17, -1) for name in ("flang", "flang-new")),
)


class Installed(NamedTuple):
    """Where it is, and the compiler that it was made for."""

    fc: str
    prefix: Path

    def compile(self, source: Path) -> Path:
        """A program of this compiler, with the MPI of this environment through mpif.h."""
        lib, program = self.prefix / "lib", source.with_suffix("")
        flags = [f"-I{self.prefix}/include", f"-L{lib}", "-lmpiserve_fortran", "-lmpiserve"]
        command = [self.fc, "-g", source, *flags, *of_mpi(), f"-Wl,-rpath,{lib}", "-o", program]
        subprocess.run(command, check=True, cwd=source.parent)
        return program


def of_mpi() -> list[str]:
    """What the wrapper of the environment's MPI passes on that is for any compiler."""
    show = subprocess.run([f"{sys.prefix}/bin/mpifort", "-show"], capture_output=True, text=True)
    return re.findall(r"-[ILl]\S+", show.stdout)


def flang() -> str | None:
    return next((name for name in FLANGS if shutil.which(name)), None)


def install(fc: str, folder: Path, *settings: str) -> Installed:
    """Without optimization, which takes a minute."""
    target = Target("", Path(sys.prefix))
    command = [
        "make",
        f"-j{os.cpu_count()}",
        "-C",
        ROOT / "csrc",
        "install",
        f"FC={fc}",
        "PYTHON=none",
    ]
    command += [f"MPICC={target.mpicc}", f"BUILD={folder}/build", f"PREFIX={folder}/installed"]
    command += ["LTO=", "CFLAGS=-O0", "FFLAGS=-O0", *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Installed(fc, folder / "installed")
