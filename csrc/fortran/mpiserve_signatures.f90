!> Descriptions of services. Programs use module mpiserve.
module mpiserve_signatures
  use, intrinsic :: iso_c_binding, only: c_char, c_int, c_int64_t, c_ptr
  use mpiserve_c
  use mpiserve_errors, only: finish, joined
  implicit none
  private
  public :: describe

  !> One tensor of a signature. shape is as an array is declared here: the rows are last, -1.
  type, public :: tensor_spec
    character(len=:), allocatable :: name
    integer(c_int) :: dtype = -1
    integer(c_int64_t), allocatable :: shape(:)
  end type tensor_spec

  !> The description of a service.
  type, public :: service_info
    character(len=:), allocatable :: name
    character(len=:), allocatable :: engine     !< what runs the model, for people and logs
    type(tensor_spec), allocatable :: inputs(:), outputs(:)
    integer(c_int64_t) :: max_batch_rows = 0    !< larger requests are cut
    integer(c_int) :: replicas = 0              !< that can serve
    integer(c_int) :: head = -1                 !< the world rank of the home replica
    integer(c_int) :: transport = -1            !< mpiserve_shared or mpiserve_rma
  end type service_info

contains

  !> Reads the description of a service.
  subroutine describe(handle, info, ierr)
    type(c_ptr), intent(in) :: handle
    type(service_info), intent(out) :: info
    integer, intent(out), optional :: ierr
    character(kind=c_char) :: name(mpiserve_name_size), engine(mpiserve_name_size)
    integer(c_int) :: n_inputs, n_outputs, code
    code = c_describe(handle, name, engine, n_inputs, n_outputs, info%max_batch_rows, &
      info%replicas, info%head, info%transport)
    if (code == mpiserve_ok) then
      info%name = joined(name)
      info%engine = joined(engine)
      call read_specs(handle, 0_c_int, n_inputs, info%inputs)
      call read_specs(handle, 1_c_int, n_outputs, info%outputs)
    end if
    call finish(code, ierr)
  end subroutine describe

  subroutine read_specs(handle, is_output, n, specs)
    type(c_ptr), intent(in) :: handle
    integer(c_int), intent(in) :: is_output, n
    type(tensor_spec), allocatable, intent(out) :: specs(:)
    character(kind=c_char) :: name(mpiserve_name_size)
    integer(c_int64_t) :: shape(mpiserve_max_dims)
    integer(c_int) :: i, ndim, code
    allocate (specs(n))
    do i = 1, n
      code = c_spec(handle, is_output, i - 1_c_int, name, specs(i)%dtype, ndim, shape)
      if (code /= mpiserve_ok) return
      specs(i)%name = joined(name)
      specs(i)%shape = shape(:ndim)
    end do
  end subroutine read_specs
end module mpiserve_signatures
