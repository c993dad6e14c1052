!> A basin after a mass of water fell into it: the shallow-water equations on a grid of cells,
!> with bottom friction and eddy viscosity from a closure that another rank of the world computes.
!>
!> Finite volumes, Rusanov's flux, a Cartesian grid of simulation ranks. The run is made twice:
!> with the network that mpiserve serves, and with the closure's formula, for comparison.
module basin
  use, intrinsic :: iso_fortran_env, only: real32, real64
  use mpi_f08
  implicit none

  real(real64), parameter :: gravity = 9.81_real64      ! m/s2
  real(real64), parameter :: elder = 5.93_real64        ! J. W. Elder, J. Fluid Mech. 5 (1959)

  ! What shallow_water.nml may say: metres, seconds, Manning's n in s/m(1/3).
  integer :: nx = 160, ny = 120, frames = 4
  real(real64) :: length = 100, width = 75, depth = 1, drop = 1.2_real64, radius = 8
  real(real64) :: manning = 0.05_real64, end_time = 16, courant = 0.4_real64
  namelist /setup/ nx, ny, frames, length, width, depth, drop, radius, manning, end_time, courant

  type(MPI_Comm) :: grid                                ! the simulation ranks, as a grid
  integer :: rank, ranks, dims(2), coords(2), west, east, south, north
  integer :: mx, my                                     ! cells of this rank
  real(real64) :: dx, dy

  !> Of each cell, and of one more around: depth h, and the discharges hu and hv.
  real(real64), allocatable :: q(:, :, :)

contains

  !> Arrange the ranks of a communicator as a grid, and find this one's cells.
  subroutine decompose(comm)
    type(MPI_Comm), intent(in) :: comm
    call MPI_Comm_size(comm, ranks)
    dims = 0
    call MPI_Dims_create(ranks, 2, dims)
    call MPI_Cart_create(comm, 2, dims, [.false., .false.], .true., grid)
    call MPI_Comm_rank(grid, rank)
    call MPI_Cart_coords(grid, rank, 2, coords)
    call MPI_Cart_shift(grid, 0, 1, west, east)
    call MPI_Cart_shift(grid, 1, 1, south, north)
    mx = before(coords(1) + 1, 1) - before(coords(1), 1)
    my = before(coords(2) + 1, 2) - before(coords(2), 2)
    dx = length / nx
    dy = width / ny
  end subroutine decompose

  !> Cells of the whole grid before the ranks at this coordinate.
  pure function before(at, axis) result(n)
    integer, intent(in) :: at, axis
    integer :: n
    n = at * merge(nx, ny, axis == 1) / dims(axis)
  end function before

  !> Still water with a round hill of water in it.
  subroutine let_fall()
    integer :: i, j
    real(real64) :: x, y
    if (allocated(q)) deallocate (q)
    allocate (q(3, 0:mx + 1, 0:my + 1), source=0.0_real64)
    do j = 1, my
      do i = 1, mx
        x = (before(coords(1), 1) + i - 0.5_real64) * dx - 0.35_real64 * length
        y = (before(coords(2), 2) + j - 0.5_real64) * dy - 0.4_real64 * width
        q(1, i, j) = depth + drop * exp(-(x**2 + y**2) / radius**2)
      end do
    end do
  end subroutine let_fall

  !> Fill the cells around ours: from the neighbours, or as walls that mirror them. Of component
  !> 2 the wall in x turns the sign, of component 3 the wall in y.
  subroutine exchange(a)
    real(real64), intent(inout) :: a(:, 0:, 0:)
    real(real64) :: across(3, my), along(3, mx)
    across = mirrored(a(:, mx, 1:my), 2)
    call swap(a(:, 1, 1:my), west, across, east)
    a(:, mx + 1, 1:my) = across
    across = mirrored(a(:, 1, 1:my), 2)
    call swap(a(:, mx, 1:my), east, across, west)
    a(:, 0, 1:my) = across
    along = mirrored(a(:, 1:mx, my), 3)
    call swap(a(:, 1:mx, 1), south, along, north)
    a(:, 1:mx, my + 1) = along
    along = mirrored(a(:, 1:mx, 1), 3)
    call swap(a(:, 1:mx, my), north, along, south)
    a(:, 1:mx, 0) = along
  end subroutine exchange

  !> Send cells to one side while others come from the opposite one; there is none at a wall.
  subroutine swap(out, to, in, from)
    real(real64), intent(in) :: out(:, :)
    integer, intent(in) :: to, from
    real(real64), intent(inout) :: in(:, :)
    real(real64) :: sent(size(out, 1), size(out, 2))
    sent = out
    call MPI_Sendrecv(sent, size(sent), MPI_DOUBLE_PRECISION, to, 0, in, size(in), &
      MPI_DOUBLE_PRECISION, from, 0, grid, MPI_STATUS_IGNORE)
  end subroutine swap

  pure function mirrored(cells, component) result(wall)
    real(real64), intent(in) :: cells(:, :)
    integer, intent(in) :: component
    real(real64) :: wall(size(cells, 1), size(cells, 2))
    wall = cells
    wall(component, :) = -wall(component, :)
  end function mirrored

  !> The longest step that the fastest wave of all ranks allows.
  function step_length() result(dt)
    real(real64) :: dt, fastest
    fastest = maxval(maxval(abs(q(2:3, 1:mx, 1:my)), 1) / q(1, 1:mx, 1:my) + &
      sqrt(gravity * q(1, 1:mx, 1:my)))
    call MPI_Allreduce(MPI_IN_PLACE, fastest, 1, MPI_DOUBLE_PRECISION, MPI_MAX, grid)
    dt = courant * min(dx, dy) / fastest
  end function step_length

  !> Rusanov's flux between two cells; axis 1 is x, 2 is y.
  pure function flux(left, right, axis) result(f)
    real(real64), intent(in) :: left(3), right(3)
    integer, intent(in) :: axis
    real(real64) :: f(3), speed
    speed = max(abs(left(1 + axis)) / left(1) + sqrt(gravity * left(1)), &
      abs(right(1 + axis)) / right(1) + sqrt(gravity * right(1)))
    f = 0.5_real64 * (physical(left, axis) + physical(right, axis) - speed * (right - left))
  end function flux

  pure function physical(cell, axis) result(f)
    real(real64), intent(in) :: cell(3)
    integer, intent(in) :: axis
    real(real64) :: f(3)
    f = cell * cell(1 + axis) / cell(1)
    f(1 + axis) = f(1 + axis) + 0.5_real64 * gravity * cell(1)**2
  end function physical

  !> Move the water for one step.
  subroutine advance(dt)
    real(real64), intent(in) :: dt
    real(real64) :: fx(3, 0:mx, my), fy(3, mx, 0:my)
    integer :: i, j
    call exchange(q)
    do j = 1, my
      do i = 0, mx
        fx(:, i, j) = flux(q(:, i, j), q(:, i + 1, j), 1)
      end do
    end do
    do j = 0, my
      do i = 1, mx
        fy(:, i, j) = flux(q(:, i, j), q(:, i, j + 1), 2)
      end do
    end do
    q(:, 1:mx, 1:my) = q(:, 1:mx, 1:my) - dt / dx * (fx(:, 1:mx, :) - fx(:, 0:mx - 1, :)) &
      - dt / dy * (fy(:, :, 1:my) - fy(:, :, 0:my - 1))
  end subroutine advance

  !> The inputs of the closure: depth in m and speed in m/s of each cell.
  subroutine ask(features)
    real(real32), intent(out) :: features(2, mx, my)
    features(1, :, :) = real(q(1, 1:mx, 1:my), real32)
    features(2, :, :) = real(norm2(q(2:3, 1:mx, 1:my), 1) / q(1, 1:mx, 1:my), real32)
  end subroutine ask

  !> The closure's formula: friction rate in 1/s (Manning) and eddy viscosity in m2/s (Elder).
  elemental subroutine formula(h, speed, friction, viscosity)
    real(real32), intent(in) :: h, speed
    real(real32), intent(out) :: friction, viscosity
    real(real64) :: d, shear
    d = real(h, real64)
    shear = sqrt(gravity) * manning * real(speed, real64) / d**(1 / 6.0_real64)
    friction = real(gravity * manning**2 * real(speed, real64) / d**(4 / 3.0_real64), real32)
    viscosity = real(elder * d * shear, real32)
  end subroutine formula

  !> Slow the water by what the closure says: friction(1, ...), viscosity(2, ...).
  subroutine resist(dt, closure)
    real(real64), intent(in) :: dt
    real(real32), intent(in) :: closure(2, mx, my)
    real(real64) :: a(3, 0:mx + 1, 0:my + 1)           ! h times viscosity, and the velocity
    integer :: k
    a = 0
    do k = 2, 3
      q(k, 1:mx, 1:my) = q(k, 1:mx, 1:my) / (1 + dt * closure(1, :, :))
      a(k, 1:mx, 1:my) = q(k, 1:mx, 1:my) / q(1, 1:mx, 1:my)
    end do
    a(1, 1:mx, 1:my) = q(1, 1:mx, 1:my) * closure(2, :, :)
    call exchange(a)
    do k = 2, 3
      q(k, 1:mx, 1:my) = q(k, 1:mx, 1:my) + dt * ( &
        (stress(a, k, 1, 0) - stress(a, k, 0, -1)) / dx**2 + &
        (stress_y(a, k, 1, 0) - stress_y(a, k, 0, -1)) / dy**2)
    end do
  end subroutine resist

  !> Viscosity between columns i + low and i + high of all cells i, times their difference.
  pure function stress(a, k, high, low) result(t)
    real(real64), intent(in) :: a(:, 0:, 0:)
    integer, intent(in) :: k, high, low
    real(real64) :: t(mx, my)
    t = 0.5_real64 * (a(1, 1 + low:mx + low, 1:my) + a(1, 1 + high:mx + high, 1:my)) * &
      (a(k, 1 + high:mx + high, 1:my) - a(k, 1 + low:mx + low, 1:my))
  end function stress

  !> The same between rows.
  pure function stress_y(a, k, high, low) result(t)
    real(real64), intent(in) :: a(:, 0:, 0:)
    integer, intent(in) :: k, high, low
    real(real64) :: t(mx, my)
    t = 0.5_real64 * (a(1, 1:mx, 1 + low:my + low) + a(1, 1:mx, 1 + high:my + high)) * &
      (a(k, 1:mx, 1 + high:my + high) - a(k, 1:mx, 1 + low:my + low))
  end function stress_y

  !> Water of all ranks, in m3.
  function volume() result(total)
    real(real64) :: total
    total = sum(q(1, 1:mx, 1:my)) * dx * dy
    call MPI_Allreduce(MPI_IN_PLACE, total, 1, MPI_DOUBLE_PRECISION, MPI_SUM, grid)
  end function volume

  !> Append depth and velocity of the whole grid to a file that rank 0 has open.
  subroutine save_frame(unit, time)
    integer, intent(in) :: unit
    real(real64), intent(in) :: time
    real(real64) :: all(3, nx, ny)
    integer :: from, c(2), lo(2), hi(2)
    if (rank > 0) then
      call MPI_Send(q(:, 1:mx, 1:my), 3 * mx * my, MPI_DOUBLE_PRECISION, 0, 1, grid)
      return
    end if
    do from = 0, ranks - 1
      call MPI_Cart_coords(grid, from, 2, c)
      lo = [before(c(1), 1) + 1, before(c(2), 2) + 1]
      hi = [before(c(1) + 1, 1), before(c(2) + 1, 2)]
      if (from == 0) then
        all(:, lo(1):hi(1), lo(2):hi(2)) = q(:, 1:mx, 1:my)
      else
        call receive(all(:, lo(1):hi(1), lo(2):hi(2)), from)
      end if
    end do
    write (unit) time, all
  end subroutine save_frame

  subroutine receive(part, from)
    real(real64), intent(inout) :: part(:, :, :)
    integer, intent(in) :: from
    real(real64) :: dense(size(part, 1), size(part, 2), size(part, 3))
    call MPI_Recv(dense, size(dense), MPI_DOUBLE_PRECISION, from, 1, grid, MPI_STATUS_IGNORE)
    part = dense
  end subroutine receive
end module basin

program shallow_water
  use basin
  use mpiserve, only: session, service
  implicit none
  type(session) :: coupled
  type(service) :: network
  type(MPI_Comm) :: comm
  character(len=256) :: file
  integer :: unit, summary

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)                     ! the world of simulation and inference
  call coupled%get_comm(comm)                           ! the simulation's own, used from here on
  call coupled%find("closure", network)

  file = "shallow_water.nml"
  if (command_argument_count() > 0) call get_command_argument(1, file)
  open (newunit=unit, file=file, status="old", action="read")
  read (unit, nml=setup)
  close (unit)
  call decompose(comm)
  if (rank == 0) then
    open (newunit=summary, file="out/summary.txt", status="replace", action="write")
    write (summary, "(a, i0)") "nx ", nx, "ny ", ny, "ranks ", ranks, "frames ", frames
    write (summary, "(a, es24.16)") "length ", length, "width ", width, "manning ", manning
  end if
  call run("network")
  call run("formula")
  if (rank == 0) close (summary)
  call coupled%close()
  call MPI_Finalize()

contains

  subroutine run(closed_by)
    character(len=*), intent(in) :: closed_by
    ! Of all cells of this rank, one after the other: rows of the service.
    real(real32) :: features(2, mx * my), closure(2, mx * my), exact(2, mx * my)
    real(real64) :: time, dt, until, began, asked, in_closure, first, error(2), largest(2)
    integer :: steps, frame, unit

    call let_fall()
    if (rank == 0) open (newunit=unit, file="out/"//closed_by//".bin", access="stream", &
      form="unformatted", status="replace")
    call save_frame(unit, 0.0_real64)
    first = volume()
    time = 0
    error = 0
    largest = 0
    steps = 0
    in_closure = 0
    began = MPI_Wtime()
    do frame = 1, frames
      until = end_time * frame / frames
      do while (time < until)
        dt = step_length()
        call advance(min(dt, until - time))
        call ask(features)
        call formula(features(1, :), features(2, :), exact(1, :), exact(2, :))
        closure = exact
        asked = MPI_Wtime()
        if (closed_by == "network") call network%infer(features, closure)
        in_closure = in_closure + MPI_Wtime() - asked
        call resist(min(dt, until - time), closure)
        error = max(error, maxval(abs(real(closure, real64) - exact), 2))
        largest = max(largest, maxval(real(exact, real64), 2))
        time = min(time + dt, until)
        steps = steps + 1
      end do
      call save_frame(unit, time)
      call progress(closed_by, steps, time)
    end do
    call MPI_Allreduce(MPI_IN_PLACE, error, 2, MPI_DOUBLE_PRECISION, MPI_MAX, grid)
    call MPI_Allreduce(MPI_IN_PLACE, largest, 2, MPI_DOUBLE_PRECISION, MPI_MAX, grid)
    first = abs(volume() - first) / first
    if (rank > 0) return
    close (unit)
    write (summary, "(2a, i0)") closed_by, "_steps ", steps
    write (summary, "(2a, es24.16)") closed_by, "_seconds ", MPI_Wtime() - began, &
      closed_by, "_closure_seconds ", in_closure, closed_by, "_volume_drift ", first, &
      closed_by, "_friction_error ", error(1) / largest(1), &
      closed_by, "_viscosity_error ", error(2) / largest(2)
  end subroutine run

  subroutine progress(closed_by, steps, time)
    character(len=*), intent(in) :: closed_by
    integer, intent(in) :: steps
    real(real64), intent(in) :: time
    real(real64) :: range(2)
    range = [-minval(q(1, 1:mx, 1:my)), maxval(q(1, 1:mx, 1:my))]
    call MPI_Allreduce(MPI_IN_PLACE, range, 2, MPI_DOUBLE_PRECISION, MPI_MAX, grid)
    if (rank == 0) print "(a, ': step ', i0, ', ', f0.2, ' s, depth ', f5.3, ' to ', f5.3, ' m')", &
      closed_by, steps, time, -range(1), range(2)
  end subroutine progress
end program shallow_water
