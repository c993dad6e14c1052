!> Texts of errors, and how each procedure ends. Programs use module mpiserve.
module mpiserve_errors
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_f_pointer, c_float, c_int, c_int64_t, &
    c_null_char, c_ptr, c_size_t
  use mpiserve_c
  implicit none
  private
  public :: mpiserve_last_error, mpiserve_strerror, mpiserve_version, from_c, joined, finish, &
    seconds_of

  interface
    function c_last_error() result(text) bind(c, name="mpiserve_last_error")
      import :: c_ptr
      implicit none
      type(c_ptr) :: text
    end function c_last_error

    function c_strerror(code) result(text) bind(c, name="mpiserve_strerror")
      import :: c_int, c_ptr
      implicit none
      integer(c_int), value :: code
      type(c_ptr) :: text
    end function c_strerror

    function c_version() result(text) bind(c, name="mpiserve_version")
      import :: c_ptr
      implicit none
      type(c_ptr) :: text
    end function c_version

    function c_strlen(text) result(n) bind(c, name="strlen")
      import :: c_ptr, c_size_t
      implicit none
      type(c_ptr), value :: text
      integer(c_size_t) :: n
    end function c_strlen
  end interface

contains

  !> The details of this thread's last failure.
  function mpiserve_last_error() result(text)
    character(len=:), allocatable :: text
    text = from_c(c_last_error())
  end function mpiserve_last_error

  !> The fixed English text of a code.
  function mpiserve_strerror(code) result(text)
    integer, intent(in) :: code
    character(len=:), allocatable :: text
    text = from_c(c_strerror(int(code, c_int)))
  end function mpiserve_strerror

  !> "major.minor.patch" of the library that is loaded.
  function mpiserve_version() result(text)
    character(len=:), allocatable :: text
    text = from_c(c_version())
  end function mpiserve_version

  function from_c(address) result(text)
    type(c_ptr), intent(in) :: address
    character(len=:), allocatable :: text
    character(kind=c_char), pointer :: letters(:)
    call c_f_pointer(address, letters, [c_strlen(address)])
    text = joined(letters)
  end function from_c

  !> Letters up to the first zero.
  pure function joined(letters) result(text)
    character(kind=c_char), intent(in) :: letters(:)
    character(len=:), allocatable :: text
    integer :: i, n
    n = size(letters)
    do i = size(letters), 1, -1
      if (letters(i) == c_null_char) n = i - 1
    end do
    allocate (character(len=n) :: text)
    do i = 1, n
      text(i:i) = letters(i)
    end do
  end function joined

  !> A time-out of either kind; any other is not a number, which the library refuses.
  pure function seconds_of(timeout) result(seconds)
    class(*), intent(in) :: timeout
    real(c_double) :: seconds
    select type (timeout)
    type is (real(c_double))
      seconds = timeout
    type is (real(c_float))
      seconds = real(timeout, c_double)
    class default
      seconds = transfer(-1_c_int64_t, seconds)
    end select
  end function seconds_of

  subroutine finish(code, ierr)
    integer(c_int), intent(in) :: code
    integer, intent(out), optional :: ierr
    if (present(ierr)) then
      ierr = int(code)
    else if (code /= mpiserve_ok) then
      error stop "mpiserve: "//mpiserve_last_error()
    end if
  end subroutine finish
end module mpiserve_errors
