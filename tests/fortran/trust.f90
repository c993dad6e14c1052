!> Rows that are not trusted are marked, and a procedure answers them.
module physics
  use, intrinsic :: iso_c_binding, only: c_f_pointer, c_ptr
  use, intrinsic :: iso_fortran_env, only: real32
  implicit none
  integer :: answered = 0

contains

  subroutine negate(rows, inputs, outputs, code, why, ierr)
    integer, intent(in) :: rows
    type(c_ptr), intent(in) :: inputs(*), outputs(*)
    integer, intent(in) :: code
    character(len=*), intent(in) :: why
    integer, intent(out) :: ierr
    real(real32), pointer :: x(:, :), y(:, :)
    call c_f_pointer(inputs(1), x, [3, rows])
    call c_f_pointer(outputs(1), y, [3, rows])
    y = -x
    answered = answered + rows
    ierr = merge(0, 1, code < 0 .and. index(why, "not trusted") > 0)
  end subroutine negate
end module physics

program trust
  use, intrinsic :: iso_c_binding, only: c_bool, c_double, c_loc
  use, intrinsic :: iso_fortran_env, only: real32
  use mpi_f08
  use mpiserve
  use physics
  implicit none
  type(session) :: coupled
  type(service) :: doubtful
  type(request) :: pending
  type(request_stats) :: stats
  type(request_options) :: options
  type(service_info) :: info
  real(real32), target :: x(3, 8), y(3, 8), right(3, 8)
  logical(c_bool), target :: trusted(8)
  integer :: failures

  failures = 0
  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%find("doubtful", doubtful)
  call doubtful%describe(info)
  call check(size(info%outputs) == 1)
  x = 2
  x(:, 2::3) = 2.75
  options%trusted = c_loc(trusted)
  call doubtful%submit(x, y, options, pending)
  call pending%wait(60.0_c_double, stats)
  call check(all(y == 2 * x) .and. all(trusted .neqv. x(1, :) > 2) .and. answered == 0)
  call check(stats%untrusted_rows == 3 .and. stats%source == mpiserve_model)
  call doubtful%fallback(negate)
  right = merge(-x, 2 * x, x > 2)
  trusted = .true.
  call doubtful%submit(x, y, options, pending)
  call pending%wait(60.0_c_double, stats)
  call check(all(y == right) .and. all(trusted .neqv. x(1, :) > 2) .and. answered == 3)
  call check(stats%untrusted_rows == 3 .and. stats%fallback_rows == 3)
  call doubtful%infer(x, y)
  call check(all(y == right) .and. answered == 6)
  call coupled%close()
  call MPI_Finalize()
  if (failures == 0) print "(a)", "the physics answered what was not trusted"

contains

  subroutine check(fine)
    logical, intent(in) :: fine
    if (fine) return
    failures = failures + 1
    print "(a, i0, 2a)", "wrong after ", answered, " rows: ", mpiserve_last_error()
  end subroutine check
end program trust
