"""mpiserve.hpp: a simulation in C++, by both compilers, with warnings and sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coupling import CONFIG, SERVE, write

from mpiserve.tools import build_flags

SOURCE = Path(__file__).with_name("simulation.cpp")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
COMPILERS = ("g++", "clang++")
SERVICE = CONFIG + "rows = 'independent'\nwarmup = false\n"


def wrapper_flags(part):
    """What the wrapper of this environment's MPI gives to a compiler."""
    wrapper = Path(sys.prefix, "bin/mpicxx")
    for option in (f"-showme:{part}", f"-{part}_info"):
        done = subprocess.run([wrapper, option], capture_output=True, text=True)
        if done.returncode == 0:
            words = done.stdout.split()
            return [w for w in words if w.startswith(("-I", "-L", "-l", "-Wl", "-pthread"))]
    raise AssertionError(done.stderr)


def compiler(name):
    if not shutil.which(name):
        pytest.skip(f"no {name} here: apt-get install clang")
    return name


def compiled(name, standard, program, *flags):
    # MPICH's wrapper names what the linker takes, too.
    given = [flag for flag in wrapper_flags("compile") if flag.startswith("-I")]
    includes = [flag.replace("-I", "-isystem", 1) for flag in given]
    command = [name, f"-std={standard}", *WARNINGS, *flags, *includes]
    command += build_flags.cflags().split() + [str(SOURCE)]
    if program:
        command += [*build_flags.libs().split(), *wrapper_flags("link"), "-o", str(program)]
    else:
        command.append("-fsyntax-only")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return program


EVERY = [(name, standard) for name in COMPILERS for standard in ("c++17", "c++20", "c++2b")]


@pytest.mark.parametrize(
    "name, standard",
    EVERY[:1] + [pytest.param(*one, marks=pytest.mark.takes_long) for one in EVERY[1:]],
)
def test_the_header_has_no_warnings(name, standard):
    compiled(compiler(name), standard, None)


@pytest.mark.takes_long
@pytest.mark.parametrize("name", COMPILERS)
def test_a_simulation_in_cpp_is_right_under_sanitizers(tmp_path, mpiexec, name):
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = compiled(compiler(name), "c++20", tmp_path / "simulation", *flags)
    write(tmp_path, config=SERVICE)
    # What the MPI library leaves is not ours, and it may intercept memory of its own.
    env = {"ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}
    done = mpiexec(["-n", 2, program, ":", "-n", 1, *SERVE, "c.toml"], env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["right", "right"]
