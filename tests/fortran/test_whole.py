"""Whole arrays and scalars, where the service has no rows; and arrays of 0 rows."""

from coupling import SERVE, compile_fortran

MODEL = """\
def field(w, a):
    assert w.shape == (4, 3) and a.shape == ()
    return a * w, w.sum()


def twice(x):
    assert len(x)
    return 2 * x
"""

SERVICES = """\
[service.field]
backend = "python"
model = "model:field"
rows = "none"
inputs = [
  { name = "w", dtype = "float64", shape = [4, 3] },
  { name = "a", dtype = "float64", shape = [] },
]
outputs = [
  { name = "y", dtype = "float64", shape = [4, 3] },
  { name = "sum", dtype = "float64", shape = [] },
]

[service.twice]
backend = "python"
model = "model:twice"
rows = "independent"
allow_empty = true
inputs = [{ name = "x", dtype = "float64", shape = [-1, 2] }]
outputs = [{ name = "y", dtype = "float64", shape = [-1, 2] }]

[pool.all]
services = ["field", "twice"]
"""

PROGRAM = """\
program whole
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: job
  type(service) :: field, twice
  type(request) :: asked
  real(8), target :: w(3, 4), y(3, 4), total, none(2, 0), nothing(2, 0), x(2, 3), z(2, 3)
  integer :: i, ierr
  call MPI_Init()
  call job%open(MPI_COMM_WORLD)
  call job%find("field", field)
  call job%find("twice", twice)
  w = reshape([(real(i, 8), i=1, 12)], shape(w))
  call field%infer_tensors([input(w), input(2.0d0)], [output(y), output(total)], 60.0)
  print "(3f6.1)", y(3, 4), total, sum(w)
  call field%submit_tensors([input(3.0d0, "a"), input(w, "w")], [output(total, "sum"), &
    output(y, "y")], asked)
  call asked%wait(60.0)
  print "(3f6.1)", y(1, 2), total, sum(w)
  call field%infer_tensors([input(w(:, 1:3)), input(2.0d0)], [output(y), output(total)], 60.0, &
    ierr=ierr)
  print "(l1, 1x, a)", ierr == mpiserve_eshape, mpiserve_last_error()
  call twice%infer(none, nothing, 60.0)
  x = 1
  call twice%infer(x, z, 60.0)
  print "(2f6.1)", sum(nothing), sum(z)
  call job%close()
  call MPI_Finalize()
end program whole
"""

PRINTED = """\
  24.0  78.0  78.0
  12.0  78.0  78.0
T service 'field', input 'w': shape is [3, 3], the signature says [4, 3]
   0.0  12.0
"""


def test_arrays_without_rows_and_of_0_rows(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(SERVICES)
    source = tmp_path / "whole.f90"
    source.write_text(PROGRAM)
    done = mpiexec(["-n", 1, compile_fortran(source), ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == PRINTED
