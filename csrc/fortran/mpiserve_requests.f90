!> The arrays of a call, and requests that have been submitted. Programs use module mpiserve.
module mpiserve_requests
  use, intrinsic :: iso_c_binding, only: c_double, c_f_procpointer, c_float, c_funloc, c_funptr, &
    c_int, c_int64_t, c_loc, c_null_char, c_null_funptr, c_null_ptr, c_ptr
  use, intrinsic :: iso_fortran_env, only: compiler_version
  use mpiserve_c
  use mpiserve_errors, only: finish, from_c
  implicit none
  private
  public :: input, output, whole, begin, record, set_fallback

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

  ! ---- tensors of a call ------------------------------------------------------------------

  !> An input of infer_tensors or submit_tensors, for one call: the values that x has now. Without
  !> a name its position says which input it is. The first row_dims dimensions count rows; else the
  !> last one.
  function input(x, name, row_dims) result(made)
    type(*), dimension(..), intent(in) :: x
    character(len=*), intent(in), optional :: name
    integer, intent(in), optional :: row_dims
    type(tensor) :: made
    call c_input(x, c_name(name), c_row_dims(row_dims), made)
  end function input

  !> An output of infer_tensors or submit_tensors: the result goes to x itself. With free
  !> dimensions it must have those of x. With shape, a whole array of as many numbers, it may have
  !> any that x has room for: it lies at the beginning of x, for c_f_pointer(c_loc(x), y, shape),
  !> and shape has its dimensions, the rows last, when the request has ended.
  function output(x, name, row_dims, shape) result(made)
    type(*), dimension(..), intent(inout), target :: x
    character(len=*), intent(in), optional :: name
    integer, intent(in), optional :: row_dims
    integer(c_int64_t), intent(inout), optional, contiguous, target :: shape(:)
    type(tensor) :: made
    type(c_ptr) :: numbers
    integer(c_int64_t) :: n
    integer(c_int) :: is_copy
    procedure(gfortran_probe), pointer :: probe
    if (index(compiler_version(), "GCC") == 1) then
      call c_f_procpointer(c_gfortran_probe(), probe)
      call probe(x, is_copy)
    else
      is_copy = copies_are_made()
    end if
    numbers = c_null_ptr
    n = 0
    if (present(shape)) numbers = c_loc(shape)
    if (present(shape)) n = size(shape, kind=c_int64_t)
    call c_output(x, c_name(name), c_row_dims(row_dims), is_copy, numbers, n, made)
  end function output

  !> Does the compiler pass components of arrays of a derived type as copies? If it does, any dense
  !> output may be such a copy; one with gaps is none.
  function copies_are_made() result(made)
    type cell
      real(c_double) :: a, b
    end type cell
    type(cell), target :: cells(2)
    integer(c_int) :: made
    cells%b = 0
    made = is_elsewhere(cells%b, c_loc(cells(1)%b))
  end function copies_are_made

  !> Not bind(c), as output() is not.
  function is_elsewhere(x, first) result(answer)
    type(*), dimension(..), intent(inout), target :: x
    type(c_ptr), intent(in) :: first
    integer(c_int) :: answer
    interface
      function c_is_elsewhere(x, first) result(code) bind(c, name="mpiserve_fortran_is_elsewhere")
        import :: c_int, c_ptr
        implicit none
        type(*), dimension(..), intent(in), target :: x
        type(c_ptr), value :: first
        integer(c_int) :: code
      end function c_is_elsewhere
    end interface
    answer = c_is_elsewhere(x, first)
  end function is_elsewhere

  !> An input or output of the caller's: x exists until the call has ended.
  function whole(x, row_dims) result(made)
    type(*), dimension(..), intent(in), target :: x
    integer, intent(in), optional :: row_dims
    type(tensor) :: made
    call c_array(x, c_null_char, c_row_dims(row_dims), made)
  end function whole

  pure function c_name(name) result(text)
    character(len=*), intent(in), optional :: name
    character(len=:), allocatable :: text
    text = c_null_char
    if (present(name)) text = trim(name)//c_null_char
  end function c_name

  pure function c_row_dims(row_dims) result(n)
    integer, intent(in), optional :: row_dims
    integer(c_int) :: n
    n = 0
    if (present(row_dims)) n = int(row_dims, c_int)
    if (present(row_dims) .and. n == 0) n = -1_c_int  ! 0: not given
  end function c_row_dims

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
