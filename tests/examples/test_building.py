"""A C program built by its user: with the flags that are printed, with CMake, with PREFIX.

Each is built in an empty folder, from what is installed alone, and then asks a service.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coupling import SERVE, write
from jobs import ROOT, Target

CONFIG = (sys.executable, "-m", "mpiserve", "config")
MPICC = shutil.which(Target("", Path(sys.prefix)).mpicc)

PROGRAM = """\
#include <mpiserve.h>
#include <stdio.h>

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *service;
  float x[2][3] = {{1, 2, 3}, {4, 5, 6}}, y[2][3];
  mpiserve_tensor in = {"x", x, MPISERVE_FLOAT32, 2, {2, 3}};
  mpiserve_tensor out = {"y", y, MPISERVE_FLOAT32, 2, {2, 3}};
  MPI_Init(&argc, &argv);
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session) ||
      mpiserve_service_find(session, "twice", &service) ||
      mpiserve_infer(service, 1, &in, 1, &out, 60, nullptr)) {
    fprintf(stderr, "%s\\n", mpiserve_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  printf("mpiserve %s: %g to %g\\n", mpiserve_version(), y[0][0], y[1][2]);
  mpiserve_close(session);
  MPI_Finalize();
  return 0;
}
"""
IN_C = PROGRAM.replace("nullptr", "NULL")

CMAKE = """\
cmake_minimum_required(VERSION 3.16)
project(user LANGUAGES C CXX)
set(CMAKE_CXX_STANDARD 17)
find_package(mpiserve {version} REQUIRED)
add_executable(in_c program.c)
target_link_libraries(in_c PRIVATE mpiserve::mpiserve)
add_executable(in_cxx program.cpp)
target_link_libraries(in_cxx PRIVATE mpiserve::mpiserve)
"""

WARNINGS = ["-Wall", "-Wextra", "-Werror"]


@pytest.fixture
def user(tmp_path):
    """A folder with the program, and what runs a command in it without this project's settings."""
    write(tmp_path)
    (tmp_path / "program.c").write_text(IN_C)
    (tmp_path / "program.cpp").write_text(PROGRAM)

    def run(*command, **env):
        plain = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONSAFEPATH": "1"} | env
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=plain, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def assert_asks(mpiexec, program):
    from mpiserve import __version__

    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == f"mpiserve {__version__}: 2 to 12\n"


def install(user, tmp_path, **settings):
    """Install into one folder and move it to another: nothing may hold the first one's name."""
    first, prefix = tmp_path / "first", tmp_path / "prefix"
    arguments = [f"{name}={value}" for name, value in settings.items()]
    user("make", "-C", ROOT, "install", f"PREFIX={first}", f"MPICC={MPICC}", *arguments)
    first.rename(prefix)
    return prefix


def test_with_the_printed_flags(user, mpiexec, tmp_path):
    flags = user(*CONFIG, "--cflags", "--libs").split()
    user(MPICC, "-std=c11", *WARNINGS, "program.c", *flags, "-o", "program")
    assert_asks(mpiexec, tmp_path / "program")


def test_with_cmake(user, mpiexec, tmp_path):
    from mpiserve import __version__

    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(version=__version__))
    folder = user(*CONFIG, "--cmake-dir").strip()
    user("cmake", "-S.", "-Bbuild", f"-Dmpiserve_DIR={folder}")
    user("cmake", "--build", "build")
    assert_asks(mpiexec, tmp_path / "build/in_c")
    assert_asks(mpiexec, tmp_path / "build/in_cxx")


def test_cmake_refuses_another_minor_version(user, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(version="0.1"))
    folder = user(*CONFIG, "--cmake-dir").strip()
    with pytest.raises(AssertionError, match="requested version"):
        user("cmake", "-S.", "-Bbuild", f"-Dmpiserve_DIR={folder}")


@pytest.mark.takes_long
def test_with_a_prefix_and_pkg_config(user, mpiexec, tmp_path):
    prefix = install(user, tmp_path, BUILD=tmp_path / "objects")
    where = {"PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig"}
    flags = user("pkg-config", "--cflags", "--libs", "mpiserve", **where).split()
    user(MPICC, "-std=c11", *WARNINGS, "program.c", *flags, "-o", "program")
    assert str(prefix) in user("ldd", "program")
    assert_asks(mpiexec, tmp_path / "program")


@pytest.mark.parametrize("language", ["-std=c11", "-std=c++17"])
def test_the_header_alone_compiles_without_a_warning(user, tmp_path, language):
    source = tmp_path / ("alone.c" if language == "-std=c11" else "alone.cpp")
    source.write_text("#include <mpiserve.h>\n")
    flags = user(*CONFIG, "--cflags").split()
    user(MPICC, language, *WARNINGS, "-pedantic", "-fsyntax-only", source, *flags)
