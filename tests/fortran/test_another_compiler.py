"""The sources of the module compiled with a program, as for a compiler that is not gfortran."""

import subprocess
import sys
from pathlib import Path

from jobs import Target

import mpiserve
from mpiserve.tools import build_flags

MODULES = [
    "mpiserve_c",
    "mpiserve_errors",
    "mpiserve_arrays",
    "mpiserve_requests",
    "mpiserve_paces",
    "mpiserve_signatures",
    "mpiserve",
    "mpiserve_prefixed",
]

# Arrays are looked at before the service is.
PROGRAM = """\
program another
  use, intrinsic :: iso_fortran_env, only: real64
  use mpiserve
  implicit none
  type(service) :: none
  type(request) :: pending
  real(real64), target :: x(4), y(4), wide(8)
  integer :: ierr
  x = 0
  call none%submit(x, y, pending, ierr)
  call tell("whole")
  call none%submit(x, wide(::2), pending, ierr)
  call tell("gaps")
  call none%infer(x, y, ierr)
  call tell("infer")
contains
  subroutine tell(label)
    character(len=*), intent(in) :: label
    print "(3a)", label, " ", merge("refused", "taken  ", &
      ierr == mpiserve_earg .and. index(mpiserve_last_error(), "a copy of this array") > 0)
  end subroutine tell
end program another
"""


def build(folder: Path, name: str) -> Path:
    """A program with the sources that are installed, of which gfortran is the compiler name."""
    sources = Path(mpiserve.__file__).parent / "share/mpiserve/fortran"
    mpicc = Target("", Path(sys.prefix)).mpicc
    flags = build_flags.cflags().split()
    c_files = sorted(sources.glob("*.c"))
    subprocess.run([mpicc, "-c", *flags, *c_files], cwd=folder, check=True)
    for module in MODULES:
        text = (sources / f"{module}.f90").read_text()
        (folder / f"{module}.f90").write_text(text.replace('"GCC"', f'"{name}"'))
    (folder / "another.f90").write_text(PROGRAM)
    objects = [f"{file.stem}.o" for file in c_files]
    files = [*objects, *(f"{module}.f90" for module in MODULES), "another.f90"]
    command = [f"{sys.prefix}/bin/mpifort", "-std=f2018", "-fno-underscoring", *files]
    subprocess.run([*command, *build_flags.libs().split(), "-o", "another"], cwd=folder, check=True)
    return folder / "another"


def test_what_may_be_a_copy_is_refused(tmp_path):
    answers = {"GCC": "whole taken", "another": "whole refused"}
    for name, first in answers.items():
        done = subprocess.run([build(tmp_path, name)], capture_output=True, text=True)
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        assert lines == [first, "gaps taken", "infer taken"], done.stderr
