!> A rod that cools: one call of a pace in each time step, in place of one of the service.
program rod
  use, intrinsic :: iso_fortran_env, only: error_unit, int64, real64
  use mpi_f08
  use mpiserve, only: session, service, pace, request_stats
  implicit none
  integer, parameter :: cells = 200, steps = 12
  real(real64), parameter :: dt = 0.01_real64, solver = 0.02_real64  ! seconds of work in each step
  type(session) :: coupled
  type(service) :: cooling
  type(MPI_Comm) :: comm
  integer :: rank
  integer(int64) :: all_steps = 0, all_ages = 0, oldest_of_all = 0

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("cooling", cooling)
  call run(1, 0, .false.)
  call run(1, 1, .false.)
  call run(1, 1, .true.)
  call run(4, 1, .true.)
  print "('rank ', i0, ': ', i0, ' paced_steps, ', i0, ' paced_age_sum, ', i0, ' paced_age_max')", &
    rank, all_steps, all_ages, oldest_of_all
  call coupled%close()
  call MPI_Finalize()

contains

  subroutine run(every, lag, extrapolate)
    integer, intent(in) :: every, lag
    logical, intent(in) :: extrapolate
    type(pace) :: steps_of_it
    type(request_stats) :: stats
    real(real64) :: T(cells), q(cells), begin, each
    integer(int64) :: ages, oldest
    integer :: i
    character(len=80) :: what
    ages = 0
    oldest = 0
    T = [(1000 + i, i=0, cells - 1)]
    call cooling%pace(steps_of_it, every=every, lag=lag, extrapolate=extrapolate)
    begin = MPI_Wtime()
    do i = 1, steps
      call coupled%step()  ! for the report of MPISERVE_PROFILE
      call steps_of_it%step(T, q, stats=stats)
      T = T + dt * q
      call rest_of_the_solver()
      ages = ages + stats%age
      oldest = max(oldest, stats%age)
    end do
    each = (MPI_Wtime() - begin) / steps
    write (what, "('rank ', i0, ': every ', i0, ', lag ', i0, ', ', a)") rank, every, lag, &
      trim(merge("on a line", "held     ", extrapolate))
    print "(a, ': ', f8.4, ' K, ages ', i0, ', oldest ', i0)", trim(what), T(cells), ages, oldest
    write (error_unit, "(a, ': ', f0.1, ' ms a step')") trim(what), 1000 * each
    call steps_of_it%close()
    all_steps = all_steps + steps
    all_ages = all_ages + ages
    oldest_of_all = max(oldest_of_all, oldest)
  end subroutine run

  !> Stands for the rest of the solver, which keeps a core busy.
  subroutine rest_of_the_solver()
    real(real64) :: until
    until = MPI_Wtime() + solver
    do while (MPI_Wtime() < until)
    end do
  end subroutine rest_of_the_solver
end program rod
