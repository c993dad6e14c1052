!> Flames side by side, of mixtures from lean to rich, whose chemistry a network learns while they
!> burn. Beside them burn the same flames by the physics alone, for comparison.
module flames
  use, intrinsic :: iso_c_binding, only: c_f_pointer, c_ptr
  use, intrinsic :: iso_fortran_env, only: real32, real64
  implicit none

  ! As in ../01_reacting_flow/kinetics.py, which the network knows.
  real(real64), parameter :: air_oxygen = 0.233_real64, oxidizer_per_fuel = 4, burnt = 4
  real(real64), parameter :: stoichiometric = air_oxygen / (air_oxygen + oxidizer_per_fuel)
  real(real64), parameter :: heat_release = (burnt - 1) / stoichiometric
  real(real64), parameter :: activation = 10 * burnt**2 / (burnt - 1)
  real(real64), parameter :: rate = 333.4_real64 / stoichiometric / oxidizer_per_fuel
  real(real64), parameter :: reaction_time = 0.06_real64
  real(real64), parameter :: lewis(3) = [1.0_real64, 1.2_real64, 1.0_real64]

  integer, parameter :: substeps = 200                    ! of a reaction
  integer, parameter :: nx = 96, parts = 3                ! parts of half a step of transport
  real(real64), parameter :: length = 16, inflow = 0.7_real64, front = 10, dx = length / nx

contains

  !> Integrate the reaction of a cell (temperature, fuel, oxidizer) by Runge and Kutta's method.
  pure function reacted(cell) result(c)
    real(real64), intent(in) :: cell(3)
    real(real64) :: c(3), k1(3), k2(3), k3(3), k4(3)
    real(real64), parameter :: dt = reaction_time / substeps
    integer :: i
    c = cell
    do i = 1, substeps
      k1 = source(c)
      k2 = source(c + 0.5_real64 * dt * k1)
      k3 = source(c + 0.5_real64 * dt * k2)
      k4 = source(c + dt * k3)
      c = c + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    end do
  end function reacted

  pure function source(c)
    real(real64), intent(in) :: c(3)
    real(real64) :: source(3), omega
    omega = rate * c(2) * c(3) * exp(-activation * (1 / c(1) - 1 / burnt))
    source = omega * [heat_release, -1.0_real64, -oxidizer_per_fuel]
  end function source

  !> What the service does not answer, or not surely enough: the change of each cell.
  subroutine physics(rows, inputs, outputs, code, why, ierr)
    integer, intent(in) :: rows
    type(c_ptr), intent(in) :: inputs(*), outputs(*)
    integer, intent(in) :: code
    character(len=*), intent(in) :: why
    integer, intent(out) :: ierr
    real(real32), pointer :: state(:, :), change(:, :)
    real(real64) :: cell(3)
    integer :: i
    call c_f_pointer(inputs(1), state, [3, rows])
    call c_f_pointer(outputs(1), change, [3, rows])
    do i = 1, rows
      cell = state(:, i)
      change(:, i) = real(reacted(cell) - cell, real32)
    end do
    ierr = merge(0, 1, code < 0 .and. len(why) > 0)
  end subroutine physics

  !> Fresh gas on the left, burnt gas on the right; flames are from `first` to `last` of `all`.
  subroutine ignite(state, first, all)
    real(real64), intent(out) :: state(:, :, :)
    integer, intent(in) :: first, all
    real(real64) :: progress, fresh(3), limiting
    integer :: i, j
    do j = 1, size(state, 3)
      fresh = mixture(first + j - 1, all)
      limiting = min(fresh(2), fresh(3) / oxidizer_per_fuel)
      do i = 1, nx
        progress = 0.5_real64 * (1 + tanh((i - 0.5_real64) * dx - front))
        state(:, i, j) = fresh + progress * limiting * [heat_release, -1.0_real64, -oxidizer_per_fuel]
      end do
    end do
  end subroutine ignite

  !> The fresh gas of flame number `n` of `all`.
  pure function mixture(n, all)
    integer, intent(in) :: n, all
    real(real64) :: mixture(3), fuel
    fuel = stoichiometric * (0.75_real64 + 0.4_real64 * (n - 0.5_real64) / all)
    mixture = [1.0_real64, fuel, air_oxygen * (1 - fuel)]
  end function mixture

  !> Half a step of transport, with the fresh gas of each flame on its left.
  subroutine move(state, first, all)
    real(real64), intent(inout) :: state(:, :, :)
    integer, intent(in) :: first, all
    real(real64) :: wide(3, 0:nx + 1), west(3), east(3)
    real(real64), parameter :: dt = 0.5_real64 * reaction_time / parts
    integer :: i, j, part
    west = dt * (1 / lewis / dx**2 + 0.5_real64 * inflow / dx)
    east = dt * (1 / lewis / dx**2 - 0.5_real64 * inflow / dx)
    do j = 1, size(state, 3)
      wide(:, 0) = mixture(first + j - 1, all)
      do part = 1, parts
        wide(:, 1:nx) = state(:, :, j)
        wide(:, nx + 1) = wide(:, nx)
        do i = 1, nx
          state(:, i, j) = wide(:, i) + west * (wide(:, i - 1) - wide(:, i)) + &
            east * (wide(:, i + 1) - wide(:, i))
        end do
      end do
    end do
  end subroutine move
end module flames

program learn
  use, intrinsic :: iso_fortran_env, only: real32, real64
  use mpi_f08
  use mpiserve, only: session, service, request, request_stats
  use flames
  implicit none
  integer, parameter :: mine = 24, most = 2000, enough = 20  ! flames of a rank; steps
  real(real64), parameter :: wanted = 0.9_real64
  type(session) :: coupled
  type(service) :: chemistry
  type(MPI_Comm) :: comm
  real(real64) :: learnt(3, nx, mine), alone(3, nx, mine)
  real(real64) :: trusted, first_trusted, error, seconds(2), of_last(2)
  integer :: rank, ranks, first, step, settled

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call MPI_Comm_size(comm, ranks)
  call coupled%find("chemistry", chemistry)
  call chemistry%fallback(physics)
  first = 1 + rank * mine
  call ignite(learnt, first, ranks * mine)
  alone = learnt
  error = 0
  of_last = 0
  settled = 0
  do step = 1, most
    call take_step()
    if (step == 1) first_trusted = trusted
    if (rank == 0 .and. mod(step, 50) == 0) print "('step ', i0, ': ', a)", step, percent(trusted)
    settled = merge(settled + 1, 0, trusted >= wanted)
    of_last = merge(of_last, 0.0_real64, settled > 0) + merge(seconds, 0.0_real64, settled > 0)
    if (settled == enough) exit
  end do
  if (rank == 0) call report(min(step, most))
  call coupled%close()
  call MPI_Finalize()

contains

  !> One step of both, and what is known after it, over all ranks.
  subroutine take_step()
    real(real64) :: begin, middle
    integer :: i, j
    call MPI_Barrier(comm)
    begin = MPI_Wtime()
    call move(learnt, first, ranks * mine)
    call ask()
    call move(learnt, first, ranks * mine)
    call MPI_Barrier(comm)
    middle = MPI_Wtime()
    call move(alone, first, ranks * mine)
    do j = 1, mine
      do i = 1, nx
        alone(:, i, j) = reacted(alone(:, i, j))
      end do
    end do
    call move(alone, first, ranks * mine)
    call MPI_Barrier(comm)
    seconds = [middle - begin, MPI_Wtime() - middle]
    error = max(error, maxval(abs(learnt(1, :, :) - alone(1, :, :)) / alone(1, :, :)))
    call MPI_Allreduce(MPI_IN_PLACE, trusted, 1, MPI_DOUBLE_PRECISION, MPI_SUM, comm)
    trusted = trusted / ranks
    call MPI_Allreduce(MPI_IN_PLACE, error, 1, MPI_DOUBLE_PRECISION, MPI_MAX, comm)
  end subroutine take_step

  !> Let the service answer; `physics` does for the rows that it is not trusted with.
  subroutine ask()
    type(request) :: pending
    type(request_stats) :: stats
    real(real32) :: state(3, nx * mine), change(3, nx * mine)
    state = real(reshape(learnt, shape(state)), real32)
    call coupled%step()
    call chemistry%submit(state, change, pending)
    call pending%wait(600.0, stats)
    learnt = learnt + reshape(change, shape(learnt))
    trusted = 1 - real(stats%fallback_rows, real64) / size(state, 2)
  end subroutine ask

  subroutine report(steps)
    integer, intent(in) :: steps
    print "(3a)", "trusted rows: ", percent(first_trusted), " in the first step"
    print "(3a, i0, a)", "trusted rows: ", percent(trusted), " after ", steps, " steps"
    print "(a, f7.4, a)", "largest error of the temperature: ", 100 * error, " %"
    if (settled == enough) print "(a, f5.1)", "speed-up of a step: ", of_last(2) / of_last(1)
  end subroutine report

  function percent(share) result(text)
    real(real64), intent(in) :: share
    character(len=7) :: text
    write (text, "(f5.1, ' %')") 100 * share
  end function percent
end program learn
