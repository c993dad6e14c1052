"""The same programs with sanitizers in the program, the module and the library, and in valgrind."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coupling import SERVE, compile_fortran, compile_simulation, is_mpich, write
from fortran import arrays
from jobs import ROOT, Target

HERE = Path(__file__).parent
SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
# Both MPIs of Debian keep memory when they end.
NO_LEAKS = {"ASAN_OPTIONS": "detect_leaks=0"}
VALGRIND = ["valgrind", "--quiet", "--error-exitcode=9", f"--suppressions={HERE}/valgrind.supp"]
ONLY_MPICH = pytest.mark.skipif(not is_mpich(), reason="Open MPI is not clean in valgrind itself")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """What is built by csrc/Makefile, with sanitizers; the flags that use it."""
    prefix = tmp_path_factory.mktemp("sanitized")
    mpicc = Target("", Path(sys.prefix)).mpicc
    settings = {"PREFIX": prefix, "BUILD": prefix / "build", "MPICC": mpicc, "FC": "gfortran"}
    flags = [f"{key}={value}" for key, value in settings.items()]
    flags += [f"CFLAGS={SANITIZE}", f"FFLAGS={SANITIZE}"]
    command = ["make", "-C", str(ROOT / "csrc"), "install", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first = [*SANITIZE.split(), f"-I{prefix}/include", f"-L{prefix}/lib"]
    return [*first, f"-Wl,-rpath,{prefix}/lib"]


@pytest.mark.takes_long
def test_wrong_use_is_clean(mpiexec, tmp_path, sanitized):
    write(tmp_path)
    program = compile_fortran(Path(shutil.copy(HERE / "wrong_use.f90", tmp_path)), *sanitized)
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"], env=NO_LEAKS)
    assert done.returncode == 0
    assert done.stdout == "every error is what it should be\n"


@pytest.mark.takes_long
def test_arrays_are_clean(mpiexec, tmp_path, sanitized):
    rank = 4
    (tmp_path / "model.py").write_text(arrays.MODEL)
    (tmp_path / "c.toml").write_text(arrays.config(rank))
    (tmp_path / "arrays.f90").write_text(arrays.program([rank]))
    program = compile_fortran(tmp_path / "arrays.f90", *sanitized)
    done = mpiexec(["-n", 1, program, rank, ":", "-n", 1, *SERVE, "c.toml"], env=NO_LEAKS)
    assert done.returncode == 0


@pytest.mark.every_mpi
@ONLY_MPICH
def test_fortran_in_valgrind(mpiexec, tmp_path):
    write(tmp_path)
    program = compile_fortran(Path(shutil.copy(HERE / "wrong_use.f90", tmp_path)))
    command = ["-n", 1, *VALGRIND, program, ":", "-n", 1, *SERVE, "c.toml"]
    done = mpiexec(command, timeout=120)
    assert done.returncode == 0
    assert done.stdout == "every error is what it should be\n"


@pytest.mark.takes_long
@ONLY_MPICH
def test_c_in_valgrind(mpiexec, tmp_path):
    source = Path(shutil.copy(ROOT / "tests/c/mpi_wrong_use.c", tmp_path))
    program = compile_simulation(source, f"-I{ROOT}/tests/c", "-lm")
    done = mpiexec(["-n", 2, *VALGRIND, program], timeout=120)
    assert done.returncode == 0
