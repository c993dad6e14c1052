!> Steps of a Fortran program: arrays, sections, expressions, several tensors, errors.
program paces
  use, intrinsic :: iso_fortran_env, only: int32, int64, real64
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: coupled
  type(service) :: both, single
  type(pace) :: steps, copy
  type(request_stats) :: stats
  real(real64) :: a(2, 40), b(2, 40), wide(4, 40), x(60), y(20)
  integer(int32) :: m(40)
  integer(int64), target :: shape(1)
  integer :: n, before, ierr
  call mpi_init()
  call coupled%open(mpi_comm_world)
  call coupled%find("both", both)
  call coupled%find("single", single)

  call both%pace(steps, every=2, lag=1)
  do n = 0, 6
    before = max((n - 1) / 2 * 2, 0)
    a = n
    wide = -1
    call steps%step_tensors([input(a), input([(int(n, int32), ierr = 1, 40)], "n")], &
      [output(m, "m"), output(wide(2:3, :), "b")], timeout=60.0, stats=stats)
    if (any(wide(2:3, :) /= before) .or. any(m /= before)) error stop "step_tensors"
    if (any(wide(1::3, :) /= -1)) error stop "gaps"
    if (stats%age /= n - before .or. stats%rows /= 40) error stop "age"
  end do
  call steps%close()
  copy = steps
  call copy%step_tensors([input(a)], [output(b)], ierr)
  if (ierr /= mpiserve_estate) error stop "closed"

  call single%pace(steps, extrapolate=.true., lag=1, ierr=ierr)
  if (ierr /= mpiserve_ok) error stop "pace"
  do n = 0, 4
    x = n * n
    call steps%step(x(1:60:3) + 1, y, ierr, stats=stats)
    if (ierr /= mpiserve_ok) error stop "step"
    if (n > 1 .and. any(y /= (n - 1)**2 + 1 + 2 * n - 3)) error stop "line"
    if (stats%extrapolated_rows /= merge(20, 0, n > 1)) error stop "extrapolated_rows"
  end do
  call steps%restart()
  call steps%step(x(1:20), y, stats=stats)
  if (stats%age /= 0 .or. any(y /= x(1:20))) error stop "restart"
  call steps%step(x(1:20), y(1:10), ierr)
  if (ierr /= mpiserve_erows) error stop "rows that differ"
  call steps%step_tensors([input(x(1:20))], [output(y, shape=shape)], ierr)
  if (ierr /= mpiserve_earg) error stop "shape"
  call single%pace(copy, every=0, ierr=ierr)
  if (ierr /= mpiserve_earg) error stop "every"
  call single%pace(copy, deadline=-1.0, ierr=ierr)
  if (ierr /= mpiserve_earg) error stop "deadline"
  call coupled%close()
  call mpi_finalize()
  print "(a)", "all steps were right"
end program paces
