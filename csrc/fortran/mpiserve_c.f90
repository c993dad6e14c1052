!> For module mpiserve: the numbers and types of mpiserve.h, and the functions of descriptors.c.
module mpiserve_c
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_funptr, c_int, c_int32_t, &
    c_int64_t, c_null_ptr, c_ptr
  implicit none
  public

  !> Codes.
  integer(c_int), parameter :: mpiserve_ok = 0
  integer(c_int), parameter :: mpiserve_earg = -1
  integer(c_int), parameter :: mpiserve_estate = -2
  integer(c_int), parameter :: mpiserve_empi = -3
  integer(c_int), parameter :: mpiserve_enomem = -4
  integer(c_int), parameter :: mpiserve_ethread = -5
  integer(c_int), parameter :: mpiserve_eversion = -6
  integer(c_int), parameter :: mpiserve_econfig = -7
  integer(c_int), parameter :: mpiserve_enotfound = -8
  integer(c_int), parameter :: mpiserve_ename = -9
  integer(c_int), parameter :: mpiserve_edtype = -10
  integer(c_int), parameter :: mpiserve_eshape = -11
  integer(c_int), parameter :: mpiserve_erows = -12
  integer(c_int), parameter :: mpiserve_emodel = -13
  integer(c_int), parameter :: mpiserve_etimeout = -14
  integer(c_int), parameter :: mpiserve_ecancelled = -15
  integer(c_int), parameter :: mpiserve_epeer = -16
  integer(c_int), parameter :: mpiserve_eclosed = -17
  integer(c_int), parameter :: mpiserve_efull = -18
  integer(c_int), parameter :: mpiserve_edeadline = -19
  integer(c_int), parameter :: mpiserve_echange = -20

  !> Dtypes.
  integer(c_int), parameter :: mpiserve_bool = 0
  integer(c_int), parameter :: mpiserve_uint8 = 1
  integer(c_int), parameter :: mpiserve_int8 = 2
  integer(c_int), parameter :: mpiserve_int16 = 3
  integer(c_int), parameter :: mpiserve_int32 = 4
  integer(c_int), parameter :: mpiserve_int64 = 5
  integer(c_int), parameter :: mpiserve_float16 = 6
  integer(c_int), parameter :: mpiserve_bfloat16 = 7
  integer(c_int), parameter :: mpiserve_float32 = 8
  integer(c_int), parameter :: mpiserve_float64 = 9
  integer(c_int), parameter :: mpiserve_uint16 = 10
  integer(c_int), parameter :: mpiserve_uint32 = 11
  integer(c_int), parameter :: mpiserve_uint64 = 12
  integer(c_int), parameter :: mpiserve_complex64 = 13
  integer(c_int), parameter :: mpiserve_complex128 = 14

  !> What has answered a request.
  integer(c_int), parameter :: mpiserve_model = 0
  integer(c_int), parameter :: mpiserve_local = 1
  integer(c_int), parameter :: mpiserve_fallback = 2

  !> States of a service.
  integer(c_int), parameter :: mpiserve_launched = 0
  integer(c_int), parameter :: mpiserve_loading = 1
  integer(c_int), parameter :: mpiserve_ready = 2
  integer(c_int), parameter :: mpiserve_busy = 3
  integer(c_int), parameter :: mpiserve_suspended = 4
  integer(c_int), parameter :: mpiserve_restarting = 5
  integer(c_int), parameter :: mpiserve_failed = 6
  integer(c_int), parameter :: mpiserve_gone = 7
  integer, parameter :: mpiserve_states = 8

  !> Transports, and limits.
  integer(c_int), parameter :: mpiserve_shared = 0
  integer(c_int), parameter :: mpiserve_rma = 1
  integer, parameter :: mpiserve_max_dims = 8
  integer, parameter :: mpiserve_max_tensors = 16
  integer, parameter :: mpiserve_name_size = 64
  real(c_double), parameter :: mpiserve_forever = -1.0_c_double

  !> What is known of an answered request: rows, and nanoseconds.
  type, bind(c) :: request_stats
    integer(c_int64_t) :: rows            !< of the request
    integer(c_int64_t) :: batch_rows      !< of the batch that it was part of
    integer(c_int64_t) :: batch_requests  !< requests of that batch
    integer(c_int64_t) :: queue_ns        !< at the head, from taken to batch closed
    integer(c_int64_t) :: compute_ns      !< the model, for the whole batch
    integer(c_int64_t) :: total_ns        !< at the client, from submit to reply seen
    integer(c_int64_t) :: generation      !< of the model: 1, one more with each reload
    integer(c_int64_t) :: source          !< mpiserve_model, mpiserve_local or mpiserve_fallback
    integer(c_int64_t) :: fallback_rows   !< of the rows, those that the fallback answered
    integer(c_int64_t) :: local_rows      !< of the rows, those that a local model answered
    integer(c_int64_t) :: age             !< of a pace: steps since the one that was answered
    integer(c_int64_t) :: extrapolated_rows  !< of a pace: of the rows, those that were extrapolated
  end type request_stats

  !> One tensor of a call: what input() and output() make.
  type, bind(c) :: tensor
    private
    type(c_ptr) :: base
    integer(c_int64_t) :: bytes
    integer(c_int32_t) :: cfi_type
    integer(c_int32_t) :: rank
    integer(c_int64_t) :: extents(mpiserve_max_dims)
    integer(c_int64_t) :: strides(mpiserve_max_dims)
    integer(c_int32_t) :: row_dims
    integer(c_int32_t) :: trouble
    integer(c_int64_t) :: copy
    character(kind=c_char) :: name(mpiserve_name_size)
    type(c_ptr) :: shape
    integer(c_int64_t) :: shape_size
  end type tensor

  !> The state of a replica; times are nanoseconds since 1970, 0: never.
  type, bind(c) :: replica_state
    integer(c_int32_t) :: state = 0      !< mpiserve_ready, mpiserve_busy or another
    integer(c_int32_t) :: replica = 0    !< 0, 1, ... within the service
    integer(c_int32_t) :: rank = -1      !< of its head, in the world
    integer(c_int64_t) :: entered_ns(0:mpiserve_states - 1) = 0  !< by state: when it was entered last
  end type replica_state

  !> Options of a request; see mpiserve_submit() in mpiserve.h.
  type, bind(c) :: request_options
    real(c_double) :: deadline = 0      !< seconds from now; 0: no deadline
    integer(c_int32_t) :: priority = 0  !< -100 to 100: the head takes higher ones first
    type(c_ptr), private :: result_shapes = c_null_ptr  !< see shape of output()
  end type request_options

  !> In-place memory of a service; see mpiserve_buffer_take() in mpiserve.h.
  type, bind(c) :: buffer
    integer(c_int64_t) :: id = 0
    integer(c_int64_t) :: rows = 0
    type(c_ptr) :: inputs(mpiserve_max_tensors)   !< for c_f_pointer(b%inputs(1), x, [3, n])
    type(c_ptr) :: outputs(mpiserve_max_tensors)
  end type buffer

  !> A request, for both sides.
  type, bind(c) :: request_handle
    type(c_ptr) :: session = c_null_ptr
    integer(c_int64_t) :: id = 0
  end type request_handle

  abstract interface
    !> What answers in place of a service: see service%fallback(). It fills the outputs, and sets
    !> ierr to 0, or to another number if it cannot. inputs and outputs are in the order of the
    !> signature, for c_f_pointer(inputs(1), x, [3, rows]); code and why say what went wrong.
    subroutine fallback_function(rows, inputs, outputs, code, why, ierr)
      import :: c_ptr
      implicit none
      integer, intent(in) :: rows
      type(c_ptr), intent(in) :: inputs(*), outputs(*)
      integer, intent(in) :: code
      character(len=*), intent(in) :: why
      integer, intent(out) :: ierr
    end subroutine fallback_function

    !> Not bind(c): x comes as the compiler's own descriptor. Is it a copy of the actual argument?
    subroutine gfortran_probe(x, is_copy)
      import :: c_int
      implicit none
      type(*), dimension(..), intent(in) :: x
      integer(c_int), intent(out) :: is_copy
    end subroutine gfortran_probe
  end interface

  interface
    subroutine c_array(x, name, row_dims, made) bind(c, name="mpiserve_fortran_array")
      import :: c_char, c_int, tensor
      implicit none
      type(*), dimension(..), intent(in), target :: x
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: row_dims
      type(tensor), intent(out) :: made
    end subroutine c_array

    subroutine c_input(x, name, row_dims, made) bind(c, name="mpiserve_fortran_input")
      import :: c_char, c_int, tensor
      implicit none
      type(*), dimension(..), intent(in) :: x
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: row_dims
      type(tensor), intent(out) :: made
    end subroutine c_input

    subroutine c_output(x, name, row_dims, is_copy, shape, shape_size, made) &
        bind(c, name="mpiserve_fortran_output")
      import :: c_char, c_int, c_int64_t, c_ptr, tensor
      implicit none
      type(*), dimension(..), intent(in), target :: x
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: row_dims, is_copy
      type(c_ptr), value :: shape
      integer(c_int64_t), value :: shape_size
      type(tensor), intent(out) :: made
    end subroutine c_output

    !> The address of a gfortran_probe.
    function c_gfortran_probe() result(address) bind(c, name="mpiserve_fortran_gfortran_probe")
      import :: c_funptr
      implicit none
      type(c_funptr) :: address
    end function c_gfortran_probe

    function c_infer(session, service, n_inputs, inputs, n_outputs, outputs, timeout, stats) &
        result(code) bind(c, name="mpiserve_fortran_infer")
      import :: c_double, c_int, c_ptr, request_stats, tensor
      implicit none
      type(c_ptr), value :: session, service
      integer(c_int), value :: n_inputs, n_outputs
      type(tensor), intent(in) :: inputs(*), outputs(*)
      real(c_double), value :: timeout
      type(request_stats), intent(inout), optional :: stats
      integer(c_int) :: code
    end function c_infer

    function c_record(service, n_inputs, inputs, n_outputs, outputs, kept) &
        result(code) bind(c, name="mpiserve_fortran_record")
      import :: c_int, c_ptr, tensor
      implicit none
      type(c_ptr), value :: service
      integer(c_int), value :: n_inputs, n_outputs
      type(tensor), intent(in) :: inputs(*), outputs(*)
      integer(c_int), intent(out) :: kept
      integer(c_int) :: code
    end function c_record

    function c_submit(session, service, n_inputs, inputs, n_outputs, outputs, options, made) &
        result(code) bind(c, name="mpiserve_fortran_submit")
      import :: c_int, c_ptr, request_handle, request_options, tensor
      implicit none
      type(c_ptr), value :: session, service
      integer(c_int), value :: n_inputs, n_outputs
      type(tensor), intent(in) :: inputs(*), outputs(*)
      type(request_options), intent(in) :: options
      type(request_handle), intent(out) :: made
      integer(c_int) :: code
    end function c_submit

    function c_wait(handle, timeout, stats) result(code) bind(c, name="mpiserve_fortran_wait")
      import :: c_double, c_int, request_handle, request_stats
      implicit none
      type(request_handle), intent(inout) :: handle
      real(c_double), value :: timeout
      type(request_stats), intent(inout), optional :: stats
      integer(c_int) :: code
    end function c_wait

    function c_test(handle, done, stats) result(code) bind(c, name="mpiserve_fortran_test")
      import :: c_int, request_handle, request_stats
      implicit none
      type(request_handle), intent(inout) :: handle
      integer(c_int), intent(out) :: done
      type(request_stats), intent(inout), optional :: stats
      integer(c_int) :: code
    end function c_test

    function c_cancel(handle) result(code) bind(c, name="mpiserve_fortran_cancel")
      import :: c_int, request_handle
      implicit none
      type(request_handle), intent(inout) :: handle
      integer(c_int) :: code
    end function c_cancel

    function c_open(world, session) result(code) bind(c, name="mpiserve_fortran_open")
      import :: c_int, c_ptr
      implicit none
      type(*), dimension(..), intent(in) :: world
      type(c_ptr), intent(inout) :: session
      integer(c_int) :: code
    end function c_open

    function c_get_comm(session, comm) result(code) bind(c, name="mpiserve_fortran_get_comm")
      import :: c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      type(*), dimension(..), intent(inout) :: comm
      integer(c_int) :: code
    end function c_get_comm

    function c_close(session) result(code) bind(c, name="mpiserve_fortran_close")
      import :: c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      integer(c_int) :: code
    end function c_close

    function c_close_within(session, timeout) result(code) &
      bind(c, name="mpiserve_fortran_close_within")
      import :: c_double, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      real(c_double), value :: timeout
      integer(c_int) :: code
    end function c_close_within

    function c_fail(session, text) result(code) bind(c, name="mpiserve_fail")
      import :: c_char, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: text(*)
      integer(c_int) :: code
    end function c_fail

    function c_step(session) result(code) bind(c, name="mpiserve_step")
      import :: c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      integer(c_int) :: code
    end function c_step

    function c_reload(session, name, version, timeout) result(code) &
        bind(c, name="mpiserve_reload")
      import :: c_char, c_double, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*), version(*)
      real(c_double), value :: timeout
      integer(c_int) :: code
    end function c_reload

    function c_unload(session, name, timeout) result(code) &
        bind(c, name="mpiserve_unload")
      import :: c_char, c_double, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*)
      real(c_double), value :: timeout
      integer(c_int) :: code
    end function c_unload

    function c_scale(session, name, replicas, timeout) result(code) &
        bind(c, name="mpiserve_scale")
      import :: c_char, c_double, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: replicas
      real(c_double), value :: timeout
      integer(c_int) :: code
    end function c_scale

    function c_start(session, name, timeout) result(code) &
        bind(c, name="mpiserve_start")
      import :: c_char, c_double, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*)
      real(c_double), value :: timeout
      integer(c_int) :: code
    end function c_start

    function c_state_get(session, name, n, state) result(code) &
        bind(c, name="mpiserve_service_state_get")
      import :: c_char, c_int, c_ptr, replica_state
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: n
      type(replica_state), intent(out) :: state
      integer(c_int) :: code
    end function c_state_get

    function c_wait_ready(session, name, timeout) result(code) &
        bind(c, name="mpiserve_service_wait_ready")
      import :: c_char, c_double, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*)
      real(c_double), value :: timeout
      integer(c_int) :: code
    end function c_wait_ready

    function c_find(session, name, service) result(code) bind(c, name="mpiserve_service_find")
      import :: c_char, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*)
      type(c_ptr), intent(inout) :: service
      integer(c_int) :: code
    end function c_find

    function c_count(session, n) result(code) bind(c, name="mpiserve_service_count")
      import :: c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      integer(c_int), intent(inout) :: n
      integer(c_int) :: code
    end function c_count

    function c_at(session, i, service) result(code) bind(c, name="mpiserve_service_at")
      import :: c_int, c_ptr
      implicit none
      type(c_ptr), value :: session
      integer(c_int), value :: i
      type(c_ptr), intent(inout) :: service
      integer(c_int) :: code
    end function c_at

    function c_describe(service, name, engine, n_inputs, n_outputs, max_batch_rows, replicas, &
        head, transport) result(code) bind(c, name="mpiserve_fortran_describe")
      import :: c_char, c_int, c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: service
      character(kind=c_char), intent(inout) :: name(*), engine(*)
      integer(c_int), intent(inout) :: n_inputs, n_outputs, replicas, head, transport
      integer(c_int64_t), intent(inout) :: max_batch_rows
      integer(c_int) :: code
    end function c_describe

    function c_spec(service, is_output, i, name, dtype, ndim, shape) result(code) &
        bind(c, name="mpiserve_fortran_spec")
      import :: c_char, c_int, c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: service
      integer(c_int), value :: is_output, i
      character(kind=c_char), intent(inout) :: name(*)
      integer(c_int), intent(inout) :: dtype, ndim
      integer(c_int64_t), intent(inout) :: shape(*)
      integer(c_int) :: code
    end function c_spec

    function c_fallback_set(service, function, data) result(code) &
        bind(c, name="mpiserve_fallback_set")
      import :: c_funptr, c_int, c_ptr
      implicit none
      type(c_ptr), value :: service
      type(c_funptr), value :: function
      type(c_ptr), value :: data
      integer(c_int) :: code
    end function c_fallback_set

    function c_buffer_take(session, service, rows, taken) result(code) &
        bind(c, name="mpiserve_fortran_buffer_take")
      import :: buffer, c_int, c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: session, service
      integer(c_int64_t), value :: rows
      type(buffer), intent(inout) :: taken
      integer(c_int) :: code
    end function c_buffer_take

    function c_buffer_give(session, service, taken) result(code) &
        bind(c, name="mpiserve_fortran_buffer_give")
      import :: buffer, c_int, c_ptr
      implicit none
      type(c_ptr), value :: session, service
      type(buffer), intent(inout) :: taken
      integer(c_int) :: code
    end function c_buffer_give
  end interface
end module mpiserve_c
