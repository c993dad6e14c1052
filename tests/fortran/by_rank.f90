!> Each procedure with arrays of any rank, and what is refused; MPI through mpif.h, for any compiler.
module by_rank_physics
  use, intrinsic :: iso_c_binding, only: c_f_pointer, c_ptr
  use, intrinsic :: iso_fortran_env, only: real64
  implicit none

contains

  subroutine minus(rows, inputs, outputs, code, why, ierr)
    integer, intent(in) :: rows
    type(c_ptr), intent(in) :: inputs(*), outputs(*)
    integer, intent(in) :: code
    character(len=*), intent(in) :: why
    integer, intent(out) :: ierr
    real(real64), pointer :: x(:, :), y(:, :)
    ierr = merge(0, 1, code /= 0 .and. len(why) > 0)
    call c_f_pointer(inputs(1), x, [3, rows])
    call c_f_pointer(outputs(1), y, [3, rows])
    y = -x
  end subroutine minus
end module by_rank_physics

program by_rank
  use, intrinsic :: iso_c_binding, only: c_f_pointer
  use, intrinsic :: iso_fortran_env, only: int64, real32, real64
  use by_rank_physics, only: minus
  use mpiserve
  implicit none
  include "mpif.h"
  type cell
    real(real64) :: a, b
  end type cell
  type(session) :: coupled
  type(service) :: halve, echo
  type(request) :: pending
  type(request_stats) :: stats
  type(service_info) :: info
  type(pace) :: steps
  type(buffer) :: memory
  type(cell), target :: cells(3, 4)
  real(real64), target :: x(3, 4), y(3, 4), wide(6, 4), sums(8), by_rows(4, 3), z(4, 3), deep(3, 2, 2)
  real(real64), pointer :: in(:, :), out(:, :)
  real(real32) :: single(3, 4)
  integer :: comm, ranks, code, ierr, failures
  integer(int64) :: long
  logical :: done, kept

  failures = 0
  call MPI_Init(code)
  call coupled%open(single(1, 1), ierr)
  call check(ierr == mpiserve_earg .and. index(mpiserve_last_error(), "a communicator is") > 0, 1)
  call coupled%open([MPI_COMM_WORLD], ierr)
  call check(ierr == mpiserve_earg, 2)
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(long, ierr)
  call check(ierr == mpiserve_earg, 3)
  call coupled%get_comm(comm)
  call MPI_Comm_size(comm, ranks, code)
  call check(ranks == 2, 4)
  call coupled%find("halve", halve)
  call coupled%find("echo", echo)
  call echo%describe(info)
  call check(info%name == "echo" .and. all(info%inputs(1)%shape == [3_int64, -1_int64]), 5)
  call random_number(x)

  ! One of each, with and without a limit.
  call echo%infer(x, y)
  call check(all(y == x), 10)
  call echo%infer(x + 1, y, 60.0_real64)
  call check(all(y == x + 1), 11)
  call echo%infer(x, y, 60.0, ierr)
  call check(ierr == mpiserve_ok .and. all(y == x), 12)
  call echo%infer(2 * x, y, 60.0, stats)
  call check(stats%rows == 4 .and. all(y == 2 * x), 13)
  by_rows = transpose(x)
  call echo%infer(by_rows, z, row_dims=1)
  call check(all(z == by_rows), 14)
  call echo%infer(single, y, ierr)
  call check(ierr == mpiserve_edtype .and. index(mpiserve_last_error(), "float32") > 0, 15)
  call echo%infer(x(1, 1), y, ierr)
  call check(ierr == mpiserve_eshape, 16)
  call echo%infer(x, deep, ierr)
  call check(ierr == mpiserve_eshape, 17)
  cells%a = x
  cells%b = 0
  call echo%infer(cells%a, cells%b)
  call check(all(cells%a == x) .and. all(cells%b == x), 18)

  ! Several, and requests that go on.
  call halve%infer_tensors([input(x)], [output(wide(::2, :)), output(sums(::2))])
  call check(all(wide(::2, :) == x / 2) .and. all(abs(sums(::2) - sum(x, 1)) < 1e-12), 20)
  call echo%submit(x, wide(::2, :3), pending, ierr)
  call check(any(ierr == [mpiserve_eshape, mpiserve_erows]), 21)
  y = 0
  call echo%submit(x(:, ::2), y(:, ::2), request_options(priority=1), pending)
  call pending%wait(60.0)
  call check(all(y(:, ::2) == x(:, ::2)) .and. all(y(:, 2::2) == 0), 22)
  ! Components of an array go back to where they are, or the compiler passes copies: an error.
  cells%b = 0
  call echo%submit(x, cells%b, pending, ierr)
  if (ierr == mpiserve_ok) then
    call pending%wait()
    call check(all(cells%b == x) .and. all(cells%a == x), 23)
  else
    call check(ierr == mpiserve_earg .and. index(mpiserve_last_error(), "a copy") > 0, 24)
  end if

  ! Memory in place, steps, pairs of the program's own, a procedure that answers.
  call echo%buffer_take(4, memory)
  call c_f_pointer(memory%inputs(1), in, [3, 4])
  call c_f_pointer(memory%outputs(1), out, [3, 4])
  in = x + 3
  call echo%infer(in, out)
  call check(all(out == x + 3), 30)
  call echo%buffer_give(memory)
  call echo%pace(steps)
  call steps%step(x, y, timeout=60.0, stats=stats)
  call check(all(y == x) .and. stats%age == 0, 31)
  call steps%close()
  call echo%record(x, y, kept=kept)
  call check(.not. kept, 32)
  call echo%fallback(minus)
  call echo%infer(x, y)
  call check(all(y == x), 33)
  call echo%fallback()
  done = .false.
  call echo%submit(x, y(:, 4:1:-1), pending)
  do while (.not. done)
    call pending%test(done)
  end do
  call check(all(y(:, 4:1:-1) == x), 34)
  call coupled%close(60.0)
  call MPI_Finalize(code)
  if (failures > 0) error stop 1
  print "(a)", "right"

contains

  subroutine check(right, number)
    logical, intent(in) :: right
    integer, intent(in) :: number
    if (right) return
    failures = failures + 1
    print "(a, i0, 2a)", "wrong: ", number, " ", mpiserve_last_error()
  end subroutine check
end program by_rank
