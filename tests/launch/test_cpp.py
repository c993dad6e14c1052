"""mpiserve.hpp: a simulation in C++, by both compilers, with warnings and sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from compilers import OF_CXX, STANDARDS, cxx_command, found, wrapper_flags
from coupling import CONFIG, SERVE, write

from mpiserve.tools import build_flags

COMPILERS = tuple(OF_CXX.values())
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SERVICE = CONFIG + "rows = 'independent'\nwarmup = false\n"


def compiler(name):
    """Return the newest of a family, by the name of its compiler of C++ without a number."""
    newest = [one.cxx for one in found() if one.cxx.startswith(name) and shutil.which(one.cxx)]
    if not newest:
        pytest.skip(f"no {name} here: apt-get install clang")
    return newest[0]


def sanitized(name):
    """Return that one, if what it needs for sanitizers is there, too."""
    cxx = compiler(name)
    command = [cxx, *SANITIZERS, "-x", "c++", "-", "-o", os.devnull]
    if subprocess.run(command, input="int main() {}", text=True, capture_output=True).returncode:
        pytest.skip(f"no sanitizers of {cxx} here: apt-get install libclang-rt-dev")
    return cxx


def compiled(name, standard, program, *flags):
    flags = [*flags, *build_flags.cflags().split()]
    if program:
        flags += [*build_flags.libs().split(), *wrapper_flags("link"), "-o", str(program)]
    else:
        flags.append("-fsyntax-only")
    command = cxx_command(name, standard, *flags)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return program


EVERY = [(name, standard) for name in COMPILERS for standard in STANDARDS]


@pytest.mark.parametrize(
    "name, standard",
    EVERY[:1] + [pytest.param(*one, marks=pytest.mark.takes_long) for one in EVERY[1:]],
)
def test_the_header_has_no_warnings(name, standard):
    compiled(compiler(name), standard, None)


@pytest.mark.takes_long
@pytest.mark.parametrize("name", COMPILERS)
def test_a_simulation_in_cpp_is_right_under_sanitizers(tmp_path, mpiexec, name):
    program = compiled(sanitized(name), "c++20", tmp_path / "simulation", "-g", *SANITIZERS)
    write(tmp_path, config=SERVICE)
    # What the MPI library leaves is not ours, and it may intercept memory of its own.
    env = {"ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}
    done = mpiexec(["-n", 2, program, ":", "-n", 1, *SERVE, "c.toml"], env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["right", "right"]
