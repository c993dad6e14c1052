"""The module that has a procedure for each rank of arrays: all that the other one does."""

import shutil
import subprocess

import numpy as np
import pytest
from coupling import SERVE
from fortran import arrays, installed
from jobs import ROOT

pytestmark = pytest.mark.takes_long
# gfortran passes components of arrays as copies. With a procedure for each rank it does not show
# which arrays are copies: output() takes sections with gaps only.
CALLS = {"gfortran": ("section", "pending"), "flang": arrays.CALLS}
SOURCES = ROOT / "tests/fortran"


@pytest.fixture(scope="module", params=["gfortran", "flang"])
def module(request, tmp_path_factory):
    fc = installed.flang() if request.param == "flang" else "gfortran"
    if fc is None:
        pytest.skip("there is no flang")
    # The Makefile sees by itself what flang needs.
    settings = ["BY_RANK=yes"] if fc == "gfortran" else []
    made = installed.install(fc, tmp_path_factory.mktemp(request.param), *settings)
    assert (made.prefix / "include/mpiserve_scalars.mod").exists()
    return made, CALLS[request.param]


@pytest.fixture(scope="module")
def program(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    made, calls = module
    (folder / "arrays.f90").write_text(arrays.with_mpif(arrays.program(kinds_of_calls=calls)))
    return made.compile(folder / "arrays.f90"), calls


@pytest.mark.parametrize("rank", arrays.RANKS)
def test_every_kind(program, mpiexec, tmp_path, rank):
    path, calls = program
    seen = arrays.run(path, mpiexec, tmp_path, rank, calls)
    assert len(seen) == len(calls) * len(arrays.KINDS)
    wrong = [array[:2] for array in seen if not np.array_equal(array.after, array.expected)]
    assert not wrong


def test_calls(module, mpiexec, tmp_path):
    (tmp_path / "model.py").write_text("def halve(x):\n    return x / 2, x.sum(1)\n")
    (tmp_path / "c.toml").write_text(CONFIG)
    shutil.copy(SOURCES / "by_rank.f90", tmp_path)
    made, _ = module
    asks = made.compile(tmp_path / "by_rank.f90")
    done = mpiexec(["-n", 2, asks, ":", "-n", 2, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout.split().count("right") == 2


CONFIG = """\
[service.halve]
backend = "python"
model = "model:halve"
inputs = [{ name = "x", dtype = "float64", shape = [-1, 3] }]
outputs = [
  { name = "y", dtype = "float64", shape = [-1, 3] },
  { name = "total", dtype = "float64", shape = [-1] },
]

[service.echo]
backend = "echo"
inputs = [{ name = "x", dtype = "float64", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float64", shape = [-1, 3] }]
"""


def test_a_header_of_another_compiler_is_an_error(tmp_path):
    fc = installed.flang()
    if fc is None:
        pytest.skip("there is no flang")
    header = subprocess.run(
        ["gfortran", "-print-file-name=include/ISO_Fortran_binding.h"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    module = installed.install(fc, tmp_path, f"FORTRAN_BINDING={header}")
    (tmp_path / "asks.f90").write_text(ASKS)
    done = subprocess.run([module.compile(tmp_path / "asks.f90")], capture_output=True, text=True)
    assert "ISO_Fortran_binding.h of another Fortran compiler" in done.stdout, done.stderr


ASKS = """\
program asks
  use mpiserve
  type(service) :: none
  real :: x(3), y(3)
  integer :: ierr
  x = 0
  call none%infer(x, y, ierr)
  if (ierr == mpiserve_eversion) print "(a)", mpiserve_last_error()
end program asks
"""
