!> Take an implicit step of a stiff equation: solve it by Newton's method, with the network's
!> Jacobian from the service. The residuals must fall quadratically.
program newton
  use, intrinsic :: iso_fortran_env, only: real64
  use mpi_f08
  use mpiserve, only: session, service, input, output
  implicit none
  integer, parameter :: species = 4, cells = 200, most = 12
  real(real64), parameter :: step = 0.1_real64, enough = 1e-12_real64
  type(session) :: coupled
  type(service) :: rates
  type(MPI_Comm) :: comm
  integer :: rank, iteration
  real(real64) :: before(species, cells), y(species, cells), rate(species, cells)
  ! The last index of a tensor is the first one here: jacobian(j, i, cell) is d rate(i) / d y(j).
  real(real64) :: jacobian(species, species, cells)
  real(real64) :: residual(0:most), left(species, cells)

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("rates.jacobian", rates)
  call start(before)

  ! Solve y - before - step * rate(y) = 0 in each cell.
  y = before
  do iteration = 0, most
    call rates%infer_tensors([input(y)], [output(rate), output(jacobian)])
    left = y - before - step * rate
    residual(iteration) = largest(left)
    if (rank == 0) print "('iteration ', i0, ': residual ', es8.2)", iteration, residual(iteration)
    if (residual(iteration) < enough) exit
    call improve(y, left, jacobian)
  end do
  if (iteration > most) error stop "Newton's method does not converge"
  call check(residual(:iteration))
  call coupled%close()
  call MPI_Finalize()

contains

  !> The amounts before the step, others in each cell and rank.
  subroutine start(amounts)
    real(real64), intent(out) :: amounts(:, :)
    integer :: i, cell
    do cell = 1, size(amounts, 2)
      amounts(:, cell) = [(sin(0.1_real64 * cell + i + rank), i=1, species)]
    end do
  end subroutine start

  !> The largest magnitude, of all cells of all ranks.
  function largest(values) result(most_of_all)
    real(real64), intent(in) :: values(:, :)
    real(real64) :: most_of_all
    call MPI_Allreduce(maxval(abs(values)), most_of_all, 1, MPI_DOUBLE_PRECISION, MPI_MAX, comm)
  end function largest

  !> One step of Newton's method: subtract (1 - step * d rate / d y)^-1 left from y.
  subroutine improve(amounts, remainder, derivative)
    real(real64), intent(inout) :: amounts(:, :)
    real(real64), intent(in) :: remainder(:, :), derivative(:, :, :)
    real(real64) :: matrix(species, species)
    integer :: i, cell
    do cell = 1, size(amounts, 2)
      matrix = -step * transpose(derivative(:, :, cell))
      do i = 1, species
        matrix(i, i) = matrix(i, i) + 1
      end do
      amounts(:, cell) = amounts(:, cell) - solution(matrix, remainder(:, cell))
    end do
  end subroutine improve

  !> Solve a linear system by Gauss's elimination with row pivots.
  pure function solution(matrix, right) result(x)
    real(real64), intent(in) :: matrix(:, :), right(:)
    real(real64) :: x(size(right)), a(size(right), size(right) + 1)
    integer :: n, k, i, pivot
    n = size(right)
    a(:, :n) = matrix
    a(:, n + 1) = right
    do k = 1, n
      pivot = k - 1 + maxloc(abs(a(k:, k)), 1)
      a([k, pivot], :) = a([pivot, k], :)
      do i = k + 1, n
        a(i, k:) = a(i, k:) - a(i, k) / a(k, k) * a(k, k:)
      end do
    end do
    do k = n, 1, -1
      x(k) = (a(k, n + 1) - dot_product(a(k, k + 1:n), x(k + 1:))) / a(k, k)
    end do
  end function solution

  !> The order of convergence, of the last residuals that rounding does not limit: about 2.
  subroutine check(residuals)
    real(real64), intent(in) :: residuals(0:)
    real(real64) :: order
    integer :: last
    last = count(residuals > enough) - 1
    if (last < 2) error stop "too few iterations to tell the order"
    order = log(residuals(last) / residuals(last - 1)) / log(residuals(last - 1) / residuals(last - 2))
    if (rank == 0) print "('order of convergence: ', f4.2)", order
    if (order < 1.8_real64) error stop "the convergence is not quadratic"
  end subroutine check
end program newton
