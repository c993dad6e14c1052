"""Images of several sizes: results that just fit, and those that have room."""

from coupling import SERVE, compile_fortran

MODEL = """\
import numpy as np


def halve(image):
    n = max(1, image.shape[1] // 2)
    return 2 * image[:, :n], image.sum((1, 2))
"""

SERVICE = """\
[service.halve]
backend = "python"
model = "model:halve"
rows = "independent"
max_batch_rows = 8
inputs = [{ name = "image", dtype = "float64", shape = [-1, -1, -1], max_shape = [-1, 9, 6] }]
outputs = [
  { name = "y", dtype = "float64", shape = [-1, -1, -1], max_shape = [-1, 4, 6] },
  { name = "total", dtype = "float64", shape = [-1] },
]
"""

PROGRAM = """\
program images
  use, intrinsic :: iso_c_binding
  use mpi_f08
  use mpiserve
  implicit none
  integer, parameter :: sizes(2, 4) = reshape([6, 9, 1, 1, 5, 2, 2, 7], [2, 4])
  type(session) :: job
  type(service) :: halve
  type(request) :: asked
  real(8), target :: room(6, 4, 2)
  real(8), allocatable :: x(:, :, :), y(:, :, :)
  real(8), pointer :: z(:, :, :)
  real(8) :: total(2)
  integer(c_int64_t), target :: shapes(3), numbers(1), wrong(2)
  integer :: k, n, ierr
  call MPI_Init()
  call job%open(MPI_COMM_WORLD)
  call job%find("halve", halve)
  do k = 1, 8
    n = max(1, sizes(2, mod(k, 4) + 1) / 2)
    allocate(x(sizes(1, mod(k, 4) + 1), sizes(2, mod(k, 4) + 1), 2))
    allocate(y(size(x, 1), n, 2))
    call random_number(x)
    call halve%infer_tensors([input(x)], [output(y), output(total)], 60.0)
    if (any(y /= 2 * x(:, :n, :)) .or. abs(total(2) - sum(x(:, :, 2))) > 1d-9) error stop "y"
    call halve%submit_tensors([input(x)], [output(room, shape=shapes), &
      output(total, shape=numbers)], asked)
    call asked%wait(60.0)
    call c_f_pointer(c_loc(room), z, shapes)
    if (any(shape(z) /= shape(y)) .or. numbers(1) /= 2) error stop "shape"
    if (any(z /= y)) error stop "z"
    call halve%infer_tensors([input(x, "image")], [output(total, "total", shape=numbers), &
      output(room, "y", shape=shapes)], 60.0)
    if (any(shapes /= shape(y))) error stop "names"
    deallocate(x, y)
  end do
  allocate(x(7, 1, 1))
  call halve%infer_tensors([input(x)], [output(room(1:1, 1:1, 1:1)), output(total(1:1))], 60.0, &
    ierr=ierr)
  print "(l1, 1x, a)", ierr == mpiserve_eshape, mpiserve_last_error()
  call halve%infer_tensors([input(x(1:2, :, :))], [output(room(:, :, 1:1)), output(total(1:1))], &
    60.0, ierr=ierr)
  print "(l1, 1x, a)", ierr == mpiserve_eshape, mpiserve_last_error()
  call halve%infer_tensors([input(x(1:2, :, :))], [output(room(:, :, 1:1), shape=wrong), &
    output(total(1:1))], 60.0, ierr=ierr)
  print "(l1, 1x, a)", ierr == mpiserve_earg, mpiserve_last_error()
  call job%close()
  call MPI_Finalize()
end program images
"""

PRINTED = """\
T service 'halve', input 'image': shape is [1, 1, 7], the signature says [rows, up to 9, up to 6]
T service 'halve', output 'y': the result has [1, 1, 2], and the array has [1, 4, 6]
T output 1: where an output has shape, all need it, as an array of 3 integers here, and are arrays \
without gaps
"""


def test_images_of_four_sizes(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(SERVICE)
    source = tmp_path / "images.f90"
    source.write_text(PROGRAM)
    done = mpiexec(["-n", 1, compile_fortran(source), ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == PRINTED
