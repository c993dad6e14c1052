!> The arrays of a call. Programs use module mpiserve.
!>
!> Procedures with arrays of any rank, here and in the other modules, are written so that by_rank.awk
!> can make one for each rank of them, for compilers that have no dimension(..) in procedures of
!> Fortran: its head has the rules.
module mpiserve_arrays
  use, intrinsic :: iso_c_binding, only: c_double, c_f_procpointer, c_int, c_int64_t, c_loc, &
    c_null_char, c_null_ptr, c_ptr
  use, intrinsic :: iso_fortran_env, only: compiler_version
  use mpiserve_c
  implicit none
  private
  public :: input, output, whole

  !> Is this what by_rank.awk has made? Then descriptors are not those of the caller.
  logical, parameter :: by_rank = .false.

contains

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
    if (.not. by_rank .and. index(compiler_version(), "GCC") == 1) then
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
    type(*), dimension(..), intent(inout), target :: x  ! of rank 1
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
end module mpiserve_arrays
