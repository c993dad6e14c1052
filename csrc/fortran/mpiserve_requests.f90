!> Requests that have been submitted. Programs use module mpiserve.
module mpiserve_requests
  use, intrinsic :: iso_c_binding, only: c_double, c_f_procpointer, c_float, c_funloc, c_funptr, &
    c_int, c_int64_t, c_null_funptr, c_null_ptr, c_ptr
  use mpiserve_c
  use mpiserve_errors, only: finish, from_c
  implicit none
  private
  public :: begin, record, set_fallback

  !> An asynchronous request. Copies of it are the same request, which ends once.
  type, public :: request
    private
    type(request_handle) :: handle
  contains
    procedure, private :: wait_forever, wait_within, wait_within_single
    procedure, private :: wait_stats, wait_stats_single, test_plain, test_stats
    !> wait([timeout, [stats,]] [ierr]): until it has ended, at most timeout seconds. Blocking.
    generic :: wait => wait_forever, wait_within, wait_within_single, wait_stats, wait_stats_single
    !> test(done, [stats,] [ierr]): has it ended? Then ierr is its code. Not blocking.
    generic :: test => test_plain, test_stats
    !> cancel([ierr]): end it without a result.
    procedure :: cancel => request_cancel
  end type request

contains

  ! ---- requests -----------------------------------------------------------------------------

  subroutine begin(session, service, inputs, outputs, options, pending, ierr)
    type(c_ptr), intent(in) :: session, service
    type(tensor), intent(in) :: inputs(:), outputs(:)
    type(request_options), intent(in) :: options
    type(request), intent(out) :: pending
    integer, intent(out), optional :: ierr
    call finish(c_submit(session, service, size(inputs, kind=c_int), inputs, &
      size(outputs, kind=c_int), outputs, options, pending%handle), ierr)
  end subroutine begin

  subroutine wait_forever(self, ierr)
    class(request), intent(inout) :: self
    integer, intent(out), optional :: ierr
    call finish(c_wait(self%handle, mpiserve_forever), ierr)
  end subroutine wait_forever

  subroutine wait_within(self, timeout, ierr)
    class(request), intent(inout) :: self
    real(c_double), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_wait(self%handle, timeout), ierr)
  end subroutine wait_within

  subroutine wait_within_single(self, timeout, ierr)
    class(request), intent(inout) :: self
    real(c_float), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_wait(self%handle, real(timeout, c_double)), ierr)
  end subroutine wait_within_single

  subroutine wait_stats(self, timeout, stats, ierr)
    class(request), intent(inout) :: self
    real(c_double), intent(in) :: timeout
    type(request_stats), intent(inout) :: stats
    integer, intent(out), optional :: ierr
    call finish(c_wait(self%handle, timeout, stats), ierr)
  end subroutine wait_stats

  subroutine wait_stats_single(self, timeout, stats, ierr)
    class(request), intent(inout) :: self
    real(c_float), intent(in) :: timeout
    type(request_stats), intent(inout) :: stats
    integer, intent(out), optional :: ierr
    call finish(c_wait(self%handle, real(timeout, c_double), stats), ierr)
  end subroutine wait_stats_single

  subroutine test_plain(self, done, ierr)
    class(request), intent(inout) :: self
    logical, intent(out) :: done
    integer, intent(out), optional :: ierr
    integer(c_int) :: ended, code
    code = c_test(self%handle, ended)
    done = ended /= 0
    call finish(code, ierr)
  end subroutine test_plain

  subroutine test_stats(self, done, stats, ierr)
    class(request), intent(inout) :: self
    logical, intent(out) :: done
    type(request_stats), intent(inout) :: stats
    integer, intent(out), optional :: ierr
    integer(c_int) :: ended, code
    code = c_test(self%handle, ended, stats)
    done = ended /= 0
    call finish(code, ierr)
  end subroutine test_stats

  subroutine request_cancel(self, ierr)
    class(request), intent(inout) :: self
    integer, intent(out), optional :: ierr
    call finish(c_cancel(self%handle), ierr)
  end subroutine request_cancel

  ! ---- pairs of the program's own -----------------------------------------------------------

  subroutine record(service, inputs, outputs, kept, ierr)
    type(c_ptr), intent(in) :: service
    type(tensor), intent(in) :: inputs(:), outputs(:)
    logical, intent(out), optional :: kept
    integer, intent(out), optional :: ierr
    integer(c_int) :: code, is_kept
    code = c_record(service, size(inputs, kind=c_int), inputs, size(outputs, kind=c_int), outputs, &
      is_kept)
    if (present(kept)) kept = is_kept /= 0
    call finish(code, ierr)
  end subroutine record

  ! ---- fallbacks ----------------------------------------------------------------------------

  !> The library passes the address of the function on, as data.
  subroutine set_fallback(service, function, ierr)
    type(c_ptr), intent(in) :: service
    procedure(fallback_function), optional :: function
    integer, intent(out), optional :: ierr
    type(c_funptr) :: caller, address
    caller = c_null_funptr
    address = c_null_funptr
    if (present(function)) caller = c_funloc(call_fallback)
    if (present(function)) address = c_funloc(function)
    call finish(c_fallback_set(service, caller, transfer(address, c_null_ptr)), ierr)
  end subroutine set_fallback

  function call_fallback(data, rows, inputs, outputs, code, why) result(failed) bind(c, name="")
    type(c_ptr), value :: data, why
    integer(c_int64_t), value :: rows
    type(c_ptr), intent(in) :: inputs(*), outputs(*)
    integer(c_int), value :: code
    integer(c_int) :: failed
    procedure(fallback_function), pointer :: function
    integer :: ierr
    call c_f_procpointer(transfer(data, c_null_funptr), function)
    ierr = 0
    call function(int(rows), inputs, outputs, int(code), from_c(why), ierr)
    failed = int(ierr, c_int)
  end function call_fallback
end module mpiserve_requests
