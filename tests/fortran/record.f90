!> Pairs that a Fortran program has computed: arrays, sections, expressions, several tensors.
program record
  use, intrinsic :: iso_fortran_env, only: int32, real64
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: coupled
  type(service) :: echo, single
  real(real64) :: a(2, 40), wide(4, 40)
  integer(int32) :: n(40)
  real(real64) :: x(300)
  logical :: kept
  integer :: i, ierr
  call mpi_init()
  call coupled%open(mpi_comm_world)
  call coupled%find("echo", echo)
  call coupled%find("single", single)
  call coupled%step()
  wide = reshape([(real(i, real64), i = 1, 160)], [4, 40])
  a = wide(1:2, :)
  n = [(i, i = 1, 40)]
  call echo%record_tensors([input(a), input(n)], [input(wide(2:3, :), "b"), input(n + 1, "m")], &
    ierr, kept)
  if (ierr /= mpiserve_ok .or. .not. kept) error stop "record_tensors"
  n = -1
  wide = 0
  call coupled%step()
  x = [(real(i, real64), i = 1, 300)]
  call single%record(x(1:300:3), 2 * x(1:100), kept=kept)
  if (.not. kept) error stop "record"
  x = 0
  call single%record(x(1:3), x(1:2), ierr)
  if (ierr /= mpiserve_erows) error stop "rows that differ"
  call coupled%close()
  call mpi_finalize()
  print "(a)", "all was recorded"
end program record
