!> A procedure answers what the service does not, and no longer when it is taken back; a local
!> model what no replica can.
module physics
  use, intrinsic :: iso_c_binding, only: c_f_pointer, c_ptr
  use, intrinsic :: iso_fortran_env, only: real32
  use mpiserve
  implicit none
  integer :: calls = 0, last_code = 0, returns = 0
  character(len=:), allocatable :: last_why

contains

  subroutine add_one(rows, inputs, outputs, code, why, ierr)
    integer, intent(in) :: rows
    type(c_ptr), intent(in) :: inputs(*), outputs(*)
    integer, intent(in) :: code
    character(len=*), intent(in) :: why
    integer, intent(out) :: ierr
    real(real32), pointer :: x(:, :), y(:, :)
    call c_f_pointer(inputs(1), x, [3, rows])
    call c_f_pointer(outputs(1), y, [3, rows])
    y = x + 1
    calls = calls + 1
    last_code = code
    last_why = why
    ierr = returns
  end subroutine add_one
end module physics

program fallback
  use, intrinsic :: iso_c_binding, only: c_double
  use, intrinsic :: iso_fortran_env, only: real32
  use mpi_f08
  use mpiserve
  use physics
  implicit none
  type(session) :: coupled
  type(service) :: times
  type(request) :: pending
  type(request_stats) :: stats
  real(real32), target :: x(3, 8), y(3, 8)
  integer :: ierr, failures

  failures = 0
  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%find("times", times)
  x = -7
  call times%fallback(add_one)
  call times%infer(x, y, 60.0_c_double, stats)
  call check(all(y == -6) .and. calls == 1)
  call check(last_code == mpiserve_emodel .and. index(last_why, "negative") > 0)
  call check(stats%source == mpiserve_fallback .and. stats%fallback_rows == 8)
  call times%submit(x(:, ::2), y(:, ::2), pending)   ! sections are packed, and unpacked
  y = 0
  call pending%wait()
  call check(all(y(:, ::2) == -6) .and. all(y(:, 2::2) == 0) .and. calls == 2)
  x = 7
  call times%infer(x, y, 60.0_c_double, stats)
  call check(all(y == 14) .and. calls == 2)
  call check(stats%source == mpiserve_model .and. stats%fallback_rows == 0)
  x = -7
  returns = 8
  call times%infer(x, y, ierr)
  call check(ierr == mpiserve_emodel .and. calls == 3)
  call check(index(mpiserve_last_error(), "the fallback failed: it returned 8") > 0)
  call times%fallback()
  call times%infer(x, y, ierr)
  call check(ierr == mpiserve_emodel .and. calls == 3)
  x = 7
  call coupled%unload("times", 60.0_c_double)
  call times%infer(x, y, 60.0_c_double, stats)
  call check(all(y == 14) .and. stats%source == mpiserve_local .and. stats%local_rows == 8)
  call coupled%close()
  call times%fallback(add_one, ierr)
  call check(ierr == mpiserve_estate)
  call MPI_Finalize()
  if (failures == 0) print "(a)", "the physics answered in its turn, and a local model"

contains

  subroutine check(right)
    logical, intent(in) :: right
    if (right) return
    failures = failures + 1
    print "(a, i0, 2a)", "wrong after ", calls, " calls: ", mpiserve_last_error()
  end subroutine check
end program fallback
