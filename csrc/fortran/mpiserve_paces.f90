!> Requests of a service that follow time steps. Programs use module mpiserve.
module mpiserve_paces
  use, intrinsic :: iso_c_binding, only: c_double, c_int, c_int32_t, c_int64_t, c_null_ptr, c_ptr
  use mpiserve_arrays, only: whole
  use mpiserve_c
  use mpiserve_errors, only: finish, seconds_of
  implicit none
  private
  public :: open_pace

  !> What service%pace() makes. One call of step or step_tensors is one time step: mpiserve_pace_step()
  !> in mpiserve.h says which answer it gets. Copies of it are the same pace.
  type, public :: pace
    private
    type(c_ptr) :: service = c_null_ptr
    integer(c_int64_t) :: id = 0
  contains
    !> step(input, output, [ierr,] [timeout,] [stats,] [row_dims]): one of each, as of infer. Inputs may
    !> be expressions, and change afterwards. Blocking until the answer that is due is there.
    procedure, private :: pace_step
    generic :: step => pace_step
    !> step_tensors([input(a), ...], [output(b), ...], [ierr,] [timeout,] [stats]).
    procedure :: step_tensors => pace_step_tensors
    !> restart([ierr]): forget the answers: the next step waits for its own. Never waits.
    procedure :: restart => pace_restart
    !> close([ierr]): cancel what is under way, and free the pace. Never waits.
    procedure :: close => pace_close
  end type pace

  !> mpiserve_pace_options.
  type, bind(c) :: pace_options
    integer(c_int64_t) :: every = 1, lag = 0
    integer(c_int32_t) :: extrapolate = 0, priority = 0
    real(c_double) :: deadline = 0
  end type pace_options

  interface
    function c_pace_open(service, options, id) result(code) bind(c, name="mpiserve_pace_open")
      import :: c_int, c_int64_t, c_ptr, pace_options
      implicit none
      type(c_ptr), value :: service
      type(pace_options), intent(in) :: options
      integer(c_int64_t), intent(out) :: id
      integer(c_int) :: code
    end function c_pace_open

    function c_pace_step(service, id, n_inputs, inputs, n_outputs, outputs, timeout, stats) &
        result(code) bind(c, name="mpiserve_fortran_pace_step")
      import :: c_double, c_int, c_int64_t, c_ptr, request_stats, tensor
      implicit none
      type(c_ptr), value :: service
      integer(c_int64_t), intent(in) :: id
      integer(c_int), value :: n_inputs, n_outputs
      type(tensor), intent(in) :: inputs(*), outputs(*)
      real(c_double), value :: timeout
      type(request_stats), intent(inout), optional :: stats
      integer(c_int) :: code
    end function c_pace_step

    function c_pace_restart(service, id) result(code) bind(c, name="mpiserve_pace_restart")
      import :: c_int, c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: service
      integer(c_int64_t), intent(in) :: id
      integer(c_int) :: code
    end function c_pace_restart

    function c_pace_close(service, id) result(code) bind(c, name="mpiserve_pace_close")
      import :: c_int, c_int64_t, c_ptr
      implicit none
      type(c_ptr), value :: service
      integer(c_int64_t), intent(inout) :: id
      integer(c_int) :: code
    end function c_pace_close
  end interface

contains

  !> every = 0 is no number of steps here, as it is none in Python.
  subroutine open_pace(service, made, ierr, every, lag, extrapolate, deadline, priority)
    type(c_ptr), intent(in) :: service
    type(pace), intent(out) :: made
    integer, intent(out), optional :: ierr
    integer, intent(in), optional :: every, lag, priority
    logical, intent(in), optional :: extrapolate
    class(*), intent(in), optional :: deadline
    type(pace_options) :: options
    if (present(every)) options%every = every
    if (options%every == 0) options%every = -1
    if (present(lag)) options%lag = lag
    if (present(priority)) options%priority = int(priority, c_int32_t)
    if (present(extrapolate)) options%extrapolate = merge(1_c_int32_t, 0_c_int32_t, extrapolate)
    if (present(deadline)) options%deadline = seconds_of(deadline)
    made%service = service
    call finish(c_pace_open(service, options, made%id), ierr)
  end subroutine open_pace

  subroutine pace_step(self, inputs, outputs, ierr, timeout, stats, row_dims)
    class(pace), intent(in) :: self
    type(*), dimension(..), intent(in) :: inputs
    type(*), dimension(..), intent(inout) :: outputs
    integer, intent(out), optional :: ierr
    class(*), intent(in), optional :: timeout
    type(request_stats), intent(inout), optional :: stats
    integer, intent(in), optional :: row_dims
    call self%step_tensors([whole(inputs, row_dims)], [whole(outputs, row_dims)], ierr, timeout, &
      stats)
  end subroutine pace_step

  subroutine pace_step_tensors(self, inputs, outputs, ierr, timeout, stats)
    class(pace), intent(in) :: self
    type(tensor), intent(in) :: inputs(:), outputs(:)
    integer, intent(out), optional :: ierr
    class(*), intent(in), optional :: timeout
    type(request_stats), intent(inout), optional :: stats
    real(c_double) :: seconds
    seconds = mpiserve_forever
    if (present(timeout)) seconds = seconds_of(timeout)
    call finish(c_pace_step(self%service, self%id, size(inputs, kind=c_int), inputs, &
      size(outputs, kind=c_int), outputs, seconds, stats), ierr)
  end subroutine pace_step_tensors

  subroutine pace_restart(self, ierr)
    class(pace), intent(in) :: self
    integer, intent(out), optional :: ierr
    call finish(c_pace_restart(self%service, self%id), ierr)
  end subroutine pace_restart

  subroutine pace_close(self, ierr)
    class(pace), intent(inout) :: self
    integer, intent(out), optional :: ierr
    call finish(c_pace_close(self%service, self%id), ierr)
  end subroutine pace_close
end module mpiserve_paces
