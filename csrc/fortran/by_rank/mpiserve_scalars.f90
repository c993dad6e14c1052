!> Scalars of any type for the functions of descriptors.c, in the module that by_rank.awk makes: there
!> they are class(*), which not every compiler passes to C as the type that they have.
module mpiserve_scalars
  use, intrinsic :: iso_c_binding, only: c_bool, c_char, c_int, c_int64_t, c_ptr
  use, intrinsic :: iso_fortran_env, only: int16, int32, int64, int8, real32, real64
  use mpiserve_c
  implicit none
  private
  public :: s_array, s_input, s_output, s_open, s_get_comm

  integer(c_int), parameter :: other_type = -1, structure = -2

  !> A CFI_cdesc_t without dimensions.
  type, bind(c) :: descriptor
    integer(c_int64_t) :: room(8)
  end type descriptor

  interface
    !> x comes as its address.
    subroutine c_scalar(x, bytes, dtype, made) bind(c, name="mpiserve_fortran_scalar")
      import :: c_int, c_int64_t, descriptor
      implicit none
      type(*), intent(in), target :: x
      integer(c_int64_t), value :: bytes
      integer(c_int), value :: dtype
      type(descriptor), intent(out) :: made
    end subroutine c_scalar

    subroutine d_array(x, name, row_dims, made) bind(c, name="mpiserve_fortran_array")
      import :: c_char, c_int, descriptor, tensor
      implicit none
      type(descriptor), intent(in) :: x
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: row_dims
      type(tensor), intent(out) :: made
    end subroutine d_array

    subroutine d_input(x, name, row_dims, made) bind(c, name="mpiserve_fortran_input")
      import :: c_char, c_int, descriptor, tensor
      implicit none
      type(descriptor), intent(in) :: x
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: row_dims
      type(tensor), intent(out) :: made
    end subroutine d_input

    subroutine d_output(x, name, row_dims, is_copy, shape, shape_size, made) &
        bind(c, name="mpiserve_fortran_output")
      import :: c_char, c_int, c_int64_t, c_ptr, descriptor, tensor
      implicit none
      type(descriptor), intent(in) :: x
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: row_dims, is_copy
      type(c_ptr), value :: shape
      integer(c_int64_t), value :: shape_size
      type(tensor), intent(out) :: made
    end subroutine d_output

    function d_open(world, session) result(code) bind(c, name="mpiserve_fortran_open")
      import :: c_int, c_ptr, descriptor
      implicit none
      type(descriptor), intent(in) :: world
      type(c_ptr), intent(inout) :: session
      integer(c_int) :: code
    end function d_open

    function d_get_comm(session, comm) result(code) bind(c, name="mpiserve_fortran_get_comm")
      import :: c_int, c_ptr, descriptor
      implicit none
      type(c_ptr), value :: session
      type(descriptor), intent(in) :: comm
      integer(c_int) :: code
    end function d_get_comm
  end interface

contains

  function described(x) result(made)
    class(*), intent(in), target :: x
    type(descriptor) :: made
    call c_scalar(x, int(storage_size(x) / 8, c_int64_t), dtype_of(x), made)
  end function described

  !> The dtype of a scalar, as of TYPES in descriptors.c.
  pure function dtype_of(x) result(dtype)
    class(*), intent(in) :: x
    integer(c_int) :: dtype
    select type (x)
    type is (logical(c_bool))
      dtype = mpiserve_bool
    type is (integer(int8))
      dtype = mpiserve_int8
    type is (integer(int16))
      dtype = mpiserve_int16
    type is (integer(int32))
      dtype = mpiserve_int32
    type is (integer(int64))
      dtype = mpiserve_int64
    type is (real(real32))
      dtype = mpiserve_float32
    type is (real(real64))
      dtype = mpiserve_float64
    type is (complex(real32))
      dtype = mpiserve_complex64
    type is (complex(real64))
      dtype = mpiserve_complex128
    type is (character(len=*))
      dtype = other_type
    type is (logical)
      dtype = other_type
    class default
      dtype = structure
    end select
  end function dtype_of

  subroutine s_array(x, name, row_dims, made)
    class(*), intent(in), target :: x
    character(kind=c_char), intent(in) :: name(*)
    integer(c_int), intent(in) :: row_dims
    type(tensor), intent(out) :: made
    call d_array(described(x), name, row_dims, made)
  end subroutine s_array

  subroutine s_input(x, name, row_dims, made)
    class(*), intent(in), target :: x
    character(kind=c_char), intent(in) :: name(*)
    integer(c_int), intent(in) :: row_dims
    type(tensor), intent(out) :: made
    call d_input(described(x), name, row_dims, made)
  end subroutine s_input

  subroutine s_output(x, name, row_dims, is_copy, shape, shape_size, made)
    class(*), intent(inout), target :: x
    character(kind=c_char), intent(in) :: name(*)
    integer(c_int), intent(in) :: row_dims, is_copy
    type(c_ptr), intent(in) :: shape
    integer(c_int64_t), intent(in) :: shape_size
    type(tensor), intent(out) :: made
    call d_output(described(x), name, row_dims, is_copy, shape, shape_size, made)
  end subroutine s_output

  function s_open(world, session) result(code)
    class(*), intent(in), target :: world
    type(c_ptr), intent(inout) :: session
    integer(c_int) :: code
    code = d_open(described(world), session)
  end function s_open

  function s_get_comm(session, comm) result(code)
    type(c_ptr), intent(in) :: session
    class(*), intent(inout), target :: comm
    integer(c_int) :: code
    code = d_get_comm(session, described(comm))
  end function s_get_comm
end module mpiserve_scalars
