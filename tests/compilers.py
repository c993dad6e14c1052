"""Build and test mpiserve with each compiler of this machine, where a warning is an error.

    python tests/compilers.py [WORD ...]      # the compilers with one of these in their names

Compilers are the programs gcc-12, clang-16 and the like on PATH. Each builds the library and the
Python modules, as an installation does, and compiles mpiserve.hpp for C++17, 20 and 23, also with
libc++ where that is there, which has mdspan. Then run, each a job of tests/run.py: the C programs
that need no MPI; some that need one, and a simulation in C++, over the library that was built; a
simulation in Python over the modules.

Exit status 0: nothing failed; 2: no such compiler is here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mpijob
from coupling import CONFIG, write
from cprograms import FLAGS, PROGRAMS, ROOMS, c_jobs, c_mpi_job, compile_c, library_sources
from jobs import ROOT, TO_LOG, Job, Target
from run import Summary

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
STANDARDS = ("c++17", "c++20", "c++2b")
LIBCXX = "-stdlib=libc++"
SIMULATION = ROOT / "tests/launch/simulation.cpp"
# What Cython writes has functions, labels and arguments that not every module uses.
OF_CYTHON = "-Wno-unused"
OVER_THE_LIBRARY = ("mpi_requests", "mpi_buffers", "mpi_ragged")  # of tests/c: some seconds each
OF_CXX = {"gcc": "g++", "clang": "clang++"}


class Compiler(NamedTuple):
    """A compiler by its name, such as gcc-12."""

    name: str

    @property
    def family(self) -> str:
        return self.name.partition("-")[0]

    @property
    def version(self) -> int:
        return int(self.name.partition("-")[2] or 0)

    @property
    def cxx(self) -> str:
        """Its compiler of C++, which need not be there."""
        return self.name.replace(self.family, OF_CXX[self.family])

    @property
    def for_wrappers(self) -> dict[str, str]:
        """Let mpicc of Open MPI, and of MPICH, call it."""
        return {"OMPI_CC": self.name, "MPICH_CC": self.name}


@cache
def found() -> tuple[Compiler, ...]:
    """Return those on PATH, the newest of each family first; one without a number if it is all."""
    names: dict[str, str] = {}
    folders = map(Path, os.environ["PATH"].split(os.pathsep))
    for path in (file for folder in folders if folder.is_dir() for file in folder.iterdir()):
        if re.fullmatch(r"(gcc|clang)(-\d+)?", path.name) and os.access(path, os.X_OK):
            names[os.path.realpath(path)] = max(path.name, names.get(os.path.realpath(path), ""))
    compilers = map(Compiler, set(names.values()))
    return tuple(sorted(compilers, key=lambda one: (one.family, one.version), reverse=True))


def chosen(words: list[str]) -> tuple[Compiler, ...]:
    """Return those with one of the words in their names; without words, each.

    Raises:
        LookupError: If there are none for a word.
    """
    here = ", ".join(one.name for one in found())
    if not here:
        raise LookupError("no compiler on PATH: apt-get install gcc")
    for word in words:
        if not any(word in one.name for one in found()):
            raise LookupError(f"no compiler on PATH has '{word}' in its name; there are: {here}")
    return tuple(one for one in found() if not words or any(word in one.name for word in words))


def wrapper_flags(part: str, prefix: str = sys.prefix) -> list[str]:
    """What the wrapper of an environment's MPI gives to a compiler: of "compile", or "link"."""
    wrapper = Path(prefix, "bin/mpicxx")
    for option in (f"-showme:{part}", f"-{part}_info"):
        done = subprocess.run([wrapper, option], capture_output=True, text=True)
        if done.returncode == 0:
            words = done.stdout.split()
            return [w for w in words if w.startswith(("-I", "-L", "-l", "-Wl", "-pthread"))]
    raise RuntimeError(done.stderr)


def mpi_headers() -> list[str]:
    """Name the folders of mpi.h; they are the system's, so that its warnings do not count."""
    # MPICH's wrapper names what the linker takes, too.
    given = [flag for flag in wrapper_flags("compile") if flag.startswith("-I")]
    return [flag.replace("-I", "-isystem", 1) for flag in given]


def has_libcxx(cxx: str) -> bool:
    """Tell whether a compiler has libc++: that of another version may be there, and too new."""
    command = [cxx, LIBCXX, f"-std={STANDARDS[-1]}", "-Werror", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input="#include <chrono>", capture_output=True, text=True)
    return done.returncode == 0


def library_command(compiler: Compiler) -> list[str]:
    """Check all files of the library and of the benchmark, without code: seconds."""
    return [
        compiler.name,
        "-fsyntax-only",
        *FLAGS,
        *mpi_headers(),
        *library_sources(*ROOMS, "bench"),
    ]


def cxx_command(cxx: str, standard: str, *flags: str) -> list[str]:
    """Compile the simulation in C++."""
    return [cxx, f"-std={standard}", *WARNINGS, *mpi_headers(), str(SIMULATION), *flags]


# ---- jobs


def jobs_of(compiler: Compiler) -> Iterator[Job]:
    """Yield what a compiler must do, in an order in which each finds what it needs."""
    env = mpijob.settings() | compiler.for_wrappers
    target = Target(compiler.name, Path(sys.prefix), env)
    made = PROGRAMS / "compilers" / compiler.name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    yield building(target, made)
    if not (made / "lib/mpiserve/lib/libmpiserve.so").exists():
        return
    os.environ["CC"] = compiler.name
    yield from c_jobs(f"c-{compiler.name}", "test_")
    yield from jobs_over_the_library(target, made)
    if shutil.which(compiler.cxx):
        yield from cxx_jobs(target, compiler.cxx, made)
    else:
        print(f"{compiler.name}: there is no {compiler.cxx}: C++ is left out")


def building(target: Target, made: Path) -> Job:
    """Build the library and the modules into made/lib/mpiserve, with all that is installed."""
    command = [target.python, "setup.py", "-q", "build", "--build-base", str(made / "build")]
    command += ["--build-lib", str(made / "lib")]
    env = target.env | {"CFLAGS": f"-Wall -Wextra -Werror {OF_CYTHON}", "FC": ""}
    return Job(f"{target.name} library and modules", command, env, 900)


def jobs_over_the_library(target: Target, made: Path) -> Iterator[Job]:
    """Yield jobs that use what was built: in C, and in Python."""
    flags = [*of_library(made), "-rdynamic", "-lm"]
    for name in OVER_THE_LIBRARY:
        source, program = ROOT / f"tests/c/{name}.c", made / name
        compile_c(["env", *assigned(target), target.mpicc], [str(source)], program, flags)
        ranks = re.search(r"ranks: (\d+)", source.read_text())
        for transport in ("shared", "rma"):
            yield c_mpi_job(target, transport, "library", program, int(ranks[1]))
    write_service(made)
    run = [target.python, "-m", "mpiserve", "run", f"{made}/c.toml", f"{made}/sim.py"]
    yield service_job(target, made, "simulation in Python", ["-n", "3", *to_log(run)])


def cxx_jobs(target: Target, cxx: str, made: Path) -> Iterator[Job]:
    """Yield jobs that compile the header with each standard, and run a program of the last one."""
    serve = [target.python, "-m", "mpiserve", "serve", f"{made}/c.toml"]
    for libcxx in ([], [LIBCXX]) if has_libcxx(cxx) else ([],):
        program = str(made / "-".join(("simulation", *libcxx)))
        run = ["-n", "2", *to_log([program]), ":", "-n", "1", *to_log(serve)]
        for standard in STANDARDS:
            flags = [*libcxx, *of_library(made), *wrapper_flags("link"), "-o", program]
            if standard != STANDARDS[-1]:
                flags = [*libcxx, *of_header(made), "-fsyntax-only"]
            title = " ".join((target.name, cxx, standard, *libcxx))
            yield Job(title, cxx_command(cxx, standard, *flags), target.env, 120)
        yield service_job(target, made, " ".join(("simulation in C++", *libcxx)), run)


def service_job(target: Target, made: Path, title: str, command: list[str]) -> Job:
    """Run a job with the modules that were built."""
    env = target.env | {"PYTHONPATH": str(made / "lib")}
    return Job(f"{target.name} {title}", [env["MPIEXEC"], *command], env, 120)


def write_service(folder: Path) -> None:
    """Write a service, and a simulation in Python that asks it."""
    write(folder, config=CONFIG + "rows = 'independent'\nwarmup = false\n")


def to_log(command: list[str]) -> list[str]:
    return ["sh", "-c", TO_LOG, "sh", *command]


def of_header(made: Path) -> list[str]:
    return [f"-I{made}/lib/mpiserve/include"]


def of_library(made: Path) -> list[str]:
    folder = made / "lib/mpiserve/lib"
    return [*of_header(made), f"-L{folder}", "-lmpiserve", f"-Wl,-rpath,{folder}"]


def assigned(target: Target) -> list[str]:
    return [f"{name}={target.env[name]}" for name in ("OMPI_CC", "MPICH_CC")]


def main(words: list[str]) -> int:
    try:
        compilers = chosen(words)
    except LookupError as error:
        print(error, file=sys.stderr)
        return 2
    summary = Summary(minutes=120, repeats=0)
    for compiler in compilers:
        try:
            for job in jobs_of(compiler):
                summary.run(job)
        except RuntimeError as error:
            summary.fail(f"{compiler.name}: a program", str(error))
    return summary.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
