!> mpiserve for Fortran: a simulation rank queries models.
!>
!> The words, the codes and the rules are those of mpiserve.h; this file says what is different.
!>   - Every procedure has ierr, optional: MPISERVE_OK or another code. Without it an
!>     error is an error stop with the text. mpiserve_last_error() gives the text of the last one.
!>   - Arrays are of any rank. x(3, n) is the tensor [n, 3] of a signature: the first index runs
!>     fastest here and the last one there, so nothing is transposed, and the rows are the last
!>     dimension here. A scalar is one row of a tensor [-1], or a tensor [] of a service without rows.
!>     Messages show shapes as the signature.
!>   - Kinds: logical(c_bool), integer(int8), (int16), (int32), (int64), real(real32), (real64),
!>     complex(real32), (real64). Integers also hold the bits of unsigned ones of the same size, and
!>     integer(int16) those of float16 and bfloat16.
!>   - row_dims = n: the first n dimensions count rows, together; the array is transposed on the way.
!>   - infer takes any arrays and expressions. The others read inputs when input() or submit() is
!>     called: any expression is right, and inputs may change afterwards. Only the in-place memory
!>     of a buffer is read later.
!>   - Outputs of submit and submit_tensors must exist, and not be touched, until the request has
!>     ended. Give them the target or asynchronous attribute. Where the compiler passes a copy of
!>     an output, as gfortran does of components of arrays of a derived type, output() and submit()
!>     are MPISERVE_EARG. A section that is not contiguous is packed, and unpacked at the end.
!>   - The result of input() is for one call; in a second call it is MPISERVE_ESTATE.
!>   - Time-outs are real(real32) or real(real64), in seconds; mpiserve_forever waits without end.
!>   - Communicators are integers, of mpif.h or module mpi, or type(MPI_Comm) of mpi_f08.
module mpiserve
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_float, c_int, c_int64_t, &
    c_null_char, c_null_ptr, c_ptr
  use mpiserve_arrays
  use mpiserve_c
  use mpiserve_errors
  use mpiserve_paces
  use mpiserve_requests
  use mpiserve_signatures
  implicit none
  private

  public :: mpiserve_ok, mpiserve_earg, mpiserve_estate, mpiserve_empi, mpiserve_enomem, &
    mpiserve_ethread, mpiserve_eversion, mpiserve_econfig, mpiserve_enotfound, mpiserve_ename, &
    mpiserve_edtype, mpiserve_eshape, mpiserve_erows, mpiserve_emodel, mpiserve_etimeout, &
    mpiserve_ecancelled, mpiserve_epeer, mpiserve_eclosed, mpiserve_efull, mpiserve_edeadline, &
    mpiserve_echange, mpiserve_bool, mpiserve_uint8, mpiserve_int8, mpiserve_int16, mpiserve_int32, &
    mpiserve_int64, mpiserve_float16, mpiserve_bfloat16, mpiserve_float32, mpiserve_float64, &
    mpiserve_uint16, mpiserve_uint32, mpiserve_uint64, mpiserve_complex64, mpiserve_complex128, &
    mpiserve_shared, mpiserve_rma, mpiserve_model, mpiserve_local, mpiserve_fallback, &
    mpiserve_launched, mpiserve_loading, mpiserve_ready, mpiserve_busy, mpiserve_suspended, &
    mpiserve_restarting, mpiserve_failed, mpiserve_gone, mpiserve_max_dims, mpiserve_max_tensors, &
    mpiserve_name_size, mpiserve_forever
  public :: request_stats, request_options, tensor, buffer, request, pace, fallback_function, &
    replica_state, tensor_spec, service_info
  public :: input, output, mpiserve_last_error, mpiserve_strerror, mpiserve_version

  !> A service of a session, which owns it.
  type, public :: service
    private
    type(c_ptr) :: handle = c_null_ptr
    type(c_ptr) :: session = c_null_ptr
  contains
    procedure, private :: infer_forever, infer_within, infer_within_single
    procedure, private :: infer_stats, infer_tensors_stats
    procedure, private :: infer_tensors_forever, infer_tensors_within, infer_tensors_within_single
    procedure, private :: submit_plain, submit_with, submit_tensors_plain, submit_tensors_with
    !> infer(input, output, [timeout, [stats,]] [ierr,] [row_dims]): one of each. Blocking.
    generic :: infer => infer_forever, infer_within, infer_within_single, infer_stats
    !> infer_tensors([input(a, "a"), ...], [output(b), ...], [timeout, [stats,]] [ierr]).
    generic :: infer_tensors => infer_tensors_forever, infer_tensors_within, &
      infer_tensors_within_single, infer_tensors_stats
    !> submit(input, output, [options,] request, [ierr,] [row_dims]): begin. Never waits.
    generic :: submit => submit_plain, submit_with
    !> submit_tensors([input(a), ...], [output(b), ...], [options,] request, [ierr]).
    generic :: submit_tensors => submit_tensors_plain, submit_tensors_with
    !> record(input, output, [ierr,] [row_dims,] [kept]), record_tensors(inputs, outputs, [ierr,]
    !> [kept]): pairs of the program's own, for the capture: mpiserve_record() in mpiserve.h.
    procedure, private :: service_record
    generic :: record => service_record
    procedure :: record_tensors => service_record_tensors
    !> pace(steps, [ierr,] [every,] [lag,] [extrapolate,] [deadline,] [priority]): couple the service
    !> to time steps: type(pace), and mpiserve_pace_open() in mpiserve.h. Local.
    procedure :: pace => service_pace
    !> describe(info, [ierr]): the signature and more. Local.
    procedure :: describe => service_describe
    !> buffer_take(rows, buffer, [ierr]), buffer_give(buffer, [ierr]): as in mpiserve.h.
    procedure :: buffer_take => service_buffer_take
    procedure :: buffer_give => service_buffer_give
    !> fallback([function,] [ierr]): a fallback_function, such as the physics, answers what the
    !> service does not; without one, none: mpiserve_fallback_set() in mpiserve.h. Local. The
    !> function is of a module, or outlives the requests.
    procedure :: fallback => service_fallback
  end type service

  !> A simulation rank's membership of a coupled world.
  type, public :: session
    private
    type(c_ptr) :: handle = c_null_ptr
  contains
    !> open(world, [ierr]): join. Collective over world; returns when the services are ready.
    !> MPISERVE_ESTATE, at once, if this session is open.
    generic :: open => session_open
    !> get_comm(comm, [ierr]): the communicator of the simulation ranks. Local.
    generic :: get_comm => session_get_comm
    !> find(name, service, [ierr]): a service by name.
    procedure :: find => session_find
    !> count(n, [ierr]) and at(i, service, [ierr]): the services of the world, i from 1. Local.
    procedure :: count => session_count, at => session_at
    !> get_state(name, state, [n,] [ierr]): a replica_state, of replica n from 1, or of the best one;
    !> wait_ready(name, timeout, [ierr]): until one is ready, at most timeout seconds: mpiserve.h.
    procedure :: get_state => session_get_state, wait_ready => session_wait_ready
    !> reload(name, version, timeout, [ierr]): another version of a model at all replicas, "" for
    !> the same again; unload(name, timeout, [ierr]): free it. One rank, blocking: mpiserve.h.
    procedure :: reload => session_reload, unload => session_unload
    !> scale(name, replicas, timeout, [ierr]): let so many replicas serve; start(name, timeout,
    !> [ierr]): as many as the configuration has; stop(name, timeout, [ierr]): none. One rank,
    !> blocking: mpiserve.h.
    procedure :: scale => session_scale
    procedure :: start => session_start, stop => session_stop
    !> step([ierr]): a time step begins, for the report of MPISERVE_PROFILE: mpiserve.h. Local.
    procedure :: step => session_step
    !> fail(text, [ierr]): report that this rank ended with an error; then close.
    procedure :: fail => session_fail
    !> close([timeout], [ierr]): leave. Collective over world; waits for what is in flight, at most
    !> timeout seconds; by default MPISERVE_CLOSE_TIMEOUT of the environment, or 30.
    generic :: close => session_close, session_close_within, session_close_single
    procedure, private :: session_open, session_get_comm
    procedure, private :: session_close, session_close_within, session_close_single
  end type session

contains

  ! ---- sessions ----------------------------------------------------------------------------

  subroutine session_open(self, world, ierr)
    class(session), intent(inout) :: self
    type(*), dimension(..), intent(in) :: world
    integer, intent(out), optional :: ierr
    call finish(c_open(world, self%handle), ierr)
  end subroutine session_open

  subroutine session_get_comm(self, comm, ierr)
    class(session), intent(in) :: self
    type(*), dimension(..), intent(inout) :: comm
    integer, intent(out), optional :: ierr
    call finish(c_get_comm(self%handle, comm), ierr)
  end subroutine session_get_comm

  subroutine session_find(self, name, found, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name
    type(service), intent(out) :: found
    integer, intent(out), optional :: ierr
    found%session = self%handle
    call finish(c_find(self%handle, trim(name)//c_null_char, found%handle), ierr)
  end subroutine session_find

  subroutine session_count(self, n, ierr)
    class(session), intent(in) :: self
    integer, intent(out) :: n
    integer, intent(out), optional :: ierr
    integer(c_int) :: counted, code
    counted = 0
    code = c_count(self%handle, counted)
    n = int(counted)
    call finish(code, ierr)
  end subroutine session_count

  subroutine session_at(self, i, found, ierr)
    class(session), intent(in) :: self
    integer, intent(in) :: i
    type(service), intent(out) :: found
    integer, intent(out), optional :: ierr
    found%session = self%handle
    call finish(c_at(self%handle, int(i - 1, c_int), found%handle), ierr)
  end subroutine session_at

  subroutine session_get_state(self, name, state, n, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name
    type(replica_state), intent(out) :: state
    integer, intent(in), optional :: n
    integer, intent(out), optional :: ierr
    integer(c_int) :: number
    number = -1
    if (present(n)) number = max(int(n, c_int), 0_c_int) - 1_c_int  ! 0 is no replica, either
    if (present(n) .and. number < 0) number = huge(number)
    call finish(c_state_get(self%handle, trim(name)//c_null_char, number, state), ierr)
  end subroutine session_get_state

  subroutine session_wait_ready(self, name, timeout, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_wait_ready(self%handle, trim(name)//c_null_char, seconds_of(timeout)), ierr)
  end subroutine session_wait_ready

  subroutine session_reload(self, name, version, timeout, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name, version
    class(*), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_reload(self%handle, trim(name)//c_null_char, trim(version)//c_null_char, &
      seconds_of(timeout)), ierr)
  end subroutine session_reload

  subroutine session_unload(self, name, timeout, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_unload(self%handle, trim(name)//c_null_char, seconds_of(timeout)), ierr)
  end subroutine session_unload

  subroutine session_scale(self, name, replicas, timeout, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name
    integer, intent(in) :: replicas
    class(*), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_scale(self%handle, trim(name)//c_null_char, int(replicas, c_int), &
      seconds_of(timeout)), ierr)
  end subroutine session_scale

  subroutine session_start(self, name, timeout, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_start(self%handle, trim(name)//c_null_char, seconds_of(timeout)), ierr)
  end subroutine session_start

  subroutine session_stop(self, name, timeout, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call self%scale(name, 0, timeout, ierr)
  end subroutine session_stop

  subroutine session_step(self, ierr)
    class(session), intent(in) :: self
    integer, intent(out), optional :: ierr
    call finish(c_step(self%handle), ierr)
  end subroutine session_step

  subroutine session_fail(self, text, ierr)
    class(session), intent(in) :: self
    character(len=*), intent(in) :: text
    integer, intent(out), optional :: ierr
    call finish(c_fail(self%handle, trim(text)//c_null_char), ierr)
  end subroutine session_fail

  subroutine session_close(self, ierr)
    class(session), intent(inout) :: self
    integer, intent(out), optional :: ierr
    call finish(c_close(self%handle), ierr)
  end subroutine session_close

  subroutine session_close_within(self, timeout, ierr)
    class(session), intent(inout) :: self
    real(c_double), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_close_within(self%handle, timeout), ierr)
  end subroutine session_close_within

  subroutine session_close_single(self, timeout, ierr)
    class(session), intent(inout) :: self
    real(c_float), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call self%session_close_within(real(timeout, c_double), ierr)
  end subroutine session_close_single

  ! ---- services: requests ------------------------------------------------------------------

  subroutine infer_forever(self, inputs, outputs, ierr, row_dims)
    class(service), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(inout) :: outputs
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: row_dims
    call self%infer_tensors_within([whole(inputs, row_dims)], [whole(outputs, row_dims)], &
      mpiserve_forever, ierr)
  end subroutine infer_forever

  subroutine infer_within(self, inputs, outputs, timeout, ierr, row_dims)
    class(service), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(inout) :: outputs
    real(c_double), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: row_dims
    call self%infer_tensors_within([whole(inputs, row_dims)], [whole(outputs, row_dims)], &
      timeout, ierr)
  end subroutine infer_within

  subroutine infer_within_single(self, inputs, outputs, timeout, ierr, row_dims)
    class(service), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(inout) :: outputs
    real(c_float), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: row_dims
    call self%infer_tensors_within([whole(inputs, row_dims)], [whole(outputs, row_dims)], &
      real(timeout, c_double), ierr)
  end subroutine infer_within_single

  subroutine infer_stats(self, inputs, outputs, timeout, stats, ierr, row_dims)
    class(service), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(inout) :: outputs
    class(*), intent(in) :: timeout
    type(request_stats), intent(inout) :: stats
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: row_dims
    call self%infer_tensors_stats([whole(inputs, row_dims)], [whole(outputs, row_dims)], &
      timeout, stats, ierr)
  end subroutine infer_stats

  subroutine infer_tensors_forever(self, inputs, outputs, ierr)
    class(service), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    integer, intent(out), optional :: ierr
    call self%infer_tensors_within(inputs, outputs, mpiserve_forever, ierr)
  end subroutine infer_tensors_forever

  subroutine infer_tensors_within(self, inputs, outputs, timeout, ierr)
    class(service), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    real(c_double), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call finish(c_infer(self%session, self%handle, size(inputs, kind=c_int), inputs, &
      size(outputs, kind=c_int), outputs, timeout), ierr)
  end subroutine infer_tensors_within

  subroutine infer_tensors_within_single(self, inputs, outputs, timeout, ierr)
    class(service), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    real(c_float), intent(in) :: timeout
    integer, intent(out), optional :: ierr
    call self%infer_tensors_within(inputs, outputs, real(timeout, c_double), ierr)
  end subroutine infer_tensors_within_single

  subroutine infer_tensors_stats(self, inputs, outputs, timeout, stats, ierr)
    class(service), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    class(*), intent(in) :: timeout
    type(request_stats), intent(inout) :: stats
    integer, intent(out), optional :: ierr
    call finish(c_infer(self%session, self%handle, size(inputs, kind=c_int), inputs, &
      size(outputs, kind=c_int), outputs, seconds_of(timeout), stats), ierr)
  end subroutine infer_tensors_stats

  subroutine submit_plain(self, inputs, outputs, pending, ierr, row_dims)
    class(service), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(inout), target :: outputs
    type(request), intent(out) :: pending
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: row_dims
    call self%submit(inputs, outputs, request_options(), pending, ierr, row_dims)
  end subroutine submit_plain

  subroutine submit_with(self, inputs, outputs, options, pending, ierr, row_dims)
    class(service), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(inout), target :: outputs
    type(request_options), intent(in) :: options
    type(request), intent(out) :: pending
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: row_dims
    call begin(self%session, self%handle, [input(inputs, row_dims=row_dims)], &
      [output(outputs, row_dims=row_dims)], options, pending, ierr)
  end subroutine submit_with

  subroutine submit_tensors_plain(self, inputs, outputs, pending, ierr)
    class(service), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    type(request), intent(out) :: pending
    integer, intent(out), optional :: ierr
    call begin(self%session, self%handle, inputs, outputs, request_options(), pending, ierr)
  end subroutine submit_tensors_plain

  subroutine submit_tensors_with(self, inputs, outputs, options, pending, ierr)
    class(service), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    type(request_options), intent(in) :: options
    type(request), intent(out) :: pending
    integer, intent(out), optional :: ierr
    call begin(self%session, self%handle, inputs, outputs, options, pending, ierr)
  end subroutine submit_tensors_with

  subroutine service_record(self, inputs, outputs, ierr, row_dims, kept)
    class(service), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(in) :: outputs
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: row_dims
    logical, intent(out), optional :: kept
    call record(self%handle, [whole(inputs, row_dims)], [whole(outputs, row_dims)], kept, ierr)
  end subroutine service_record

  subroutine service_record_tensors(self, inputs, outputs, ierr, kept)
    class(service), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    integer, intent(out), optional :: ierr
    logical, intent(out), optional :: kept
    call record(self%handle, inputs, outputs, kept, ierr)
  end subroutine service_record_tensors

  subroutine service_pace(self, steps, ierr, every, lag, extrapolate, deadline, priority)
    class(service), intent(in) :: self
    type(pace), intent(out) :: steps
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: every, lag, priority
    logical, intent(in), optional :: extrapolate
    class(*), intent(in), optional :: deadline
    call open_pace(self%handle, steps, ierr, every, lag, extrapolate, deadline, priority)
  end subroutine service_pace

  ! ---- services: what they are, and their memory --------------------------------------------

  subroutine service_describe(self, info, ierr)
    class(service), intent(in) :: self
    type(service_info), intent(out) :: info
    integer, intent(out), optional :: ierr
    call describe(self%handle, info, ierr)
  end subroutine service_describe

  subroutine service_buffer_take(self, rows, taken, ierr)
    class(service), intent(in) :: self
    integer, intent(in) :: rows
    type(buffer), intent(out) :: taken
    integer, intent(out), optional :: ierr
    call finish(c_buffer_take(self%session, self%handle, int(rows, c_int64_t), taken), ierr)
  end subroutine service_buffer_take

  subroutine service_buffer_give(self, taken, ierr)
    class(service), intent(in) :: self
    type(buffer), intent(inout) :: taken
    integer, intent(out), optional :: ierr
    call finish(c_buffer_give(self%session, self%handle, taken), ierr)
  end subroutine service_buffer_give

  subroutine service_fallback(self, function, ierr)
    class(service), intent(in) :: self
    procedure(fallback_function), optional :: function
    integer, intent(out), optional :: ierr
    call set_fallback(self%handle, function, ierr)
  end subroutine service_fallback
end module mpiserve
