"""Compile MLPerf LoadGen and the client that it drives, from the sources of LoadGen."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mpiserve.backends.cache import Cache
from mpiserve.errors import Code, Error
from mpiserve.mpi import families

CLIENT = families.PACKAGE / "share/mpiserve/bench/loadgen.cpp"
LOADGEN, LIBRARY = "libmlperf_loadgen.so", "libjudge.so"
FLAGS = ("-O2", "-fPIC", "-std=c++17", "-pthread")
# These two would need Python.
LEFT_OUT = {"python_api.cc", "c_api.cc"}
LIMIT = 300.0  # seconds for one run of the compiler

HOW = """\
it needs the sources of MLPerf LoadGen: pip download --no-deps --no-binary :all: mlcommons-loadgen \
and set MPISERVE_LOADGEN to the file"""


def missing() -> str:
    """Say what the case needs and does not find here, or nothing."""
    archive = _archive()
    if not archive:
        return HOW
    if not Path(archive).is_file():
        return f"MPISERVE_LOADGEN is {archive}, which is no file"
    if not shutil.which(_compiler()[0]):
        return f"it needs a C++ compiler, and there is no '{_compiler()[0]}' (CXX names another)"
    return ""


def library() -> Path:
    """Return the library of the client; compile what the cache of compiled models does not have.

    Raises:
        Error: If it cannot be compiled, with the compiler's words.
    """
    archive = Path(_archive())
    loadgen = Cache().get(f"loadgen-{_hash(archive)}", lambda folder: _loadgen(archive, folder))
    key = f"judge-{_hash(CLIENT, families.prefix() / 'include/mpiserve.h', path=loadgen)}"
    return Cache().get(key, lambda folder: _client(loadgen, folder / LIBRARY)) / LIBRARY


def _hash(*files: Path, path: Path | None = None) -> str:
    parts = [file.read_bytes() for file in files]
    parts += [repr((FLAGS, _compiler(), str(path), str(families.prefix()))).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _loadgen(archive: Path, folder: Path) -> None:
    """Compile LoadGen into a folder, beside its headers."""
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    found = next(folder.glob("*/loadgen.h"), None)
    if found is None:
        raise Error(Code.ECONFIG, f"MPISERVE_LOADGEN: {archive.name} has no loadgen.h")
    found.parent.rename(folder / "source")
    files = [file for file in (folder / "source").rglob("*.cc") if file.name not in LEFT_OUT]
    major, minor = (folder / "source/VERSION.txt").read_text().split(".")[:2]
    define = [f"-DMAJOR_VERSION={major}", f"-DMINOR_VERSION={minor}", f"-I{folder}/source"]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        objects = list(compilers.map(lambda file: _object(file, define), files))
    _run([*_compiler(), "-shared", "-pthread", *objects, "-o", str(folder / LOADGEN)])
    for made in objects:
        Path(made).unlink()


def _object(file: Path, flags: Sequence[str]) -> str:
    made = file.with_suffix(".o")
    _run([*_compiler(), *FLAGS, *flags, "-c", str(file), "-o", str(made)])
    return str(made)


def _client(loadgen: Path, made: Path) -> None:
    mine = families.prefix()
    include = [f"-I{mine / 'include'}", f"-I{loadgen / 'source'}"]
    link = [f"{loadgen / LOADGEN}", f"-Wl,-rpath,{loadgen}"]
    link += [f"-L{mine / 'lib'}", "-lmpiserve", f"-Wl,-rpath,{mine / 'lib'}"]
    _run([*_compiler(), *FLAGS, "-shared", *include, str(CLIENT), *link, "-o", str(made)])


def _archive() -> str:
    """Return the archive of LoadGen's sources, as it comes from PyPI."""
    return os.environ.get("MPISERVE_LOADGEN", "")


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        lines = done.stderr.splitlines() or ["it said nothing"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise Error(Code.ESTATE, f"{command[0]} cannot compile LoadGen's client: {first[:300]}")
