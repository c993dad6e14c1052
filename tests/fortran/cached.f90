!> What one rank has asked for is kept for the other one: a section, a part, and numbers that are near.
program cached
  use, intrinsic :: iso_c_binding, only: c_double
  use, intrinsic :: iso_fortran_env, only: int64, real32
  use mpi_f08
  use mpiserve
  implicit none
  integer, parameter :: rows = 60
  type(session) :: coupled
  type(service) :: twice, nearly
  type(MPI_Comm) :: comm
  real(real32) :: x(3, rows), wide(3, 2 * rows)
  integer :: i, rank, failures

  failures = 0
  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("twice", twice)
  call coupled%find("nearly", nearly)
  x = reshape([(real(i, real32), i = 1, 3 * rows)], [3, rows])
  wide(:, ::2) = x
  wide(:, 2::2) = -1
  if (rank == 0) then
    ! After its first batch the service has another engine, which begins with nothing.
    call expect(twice, -x(:, 1:1), 1)
    call expect(twice, wide(:, ::2), rows)
    call expect(twice, x, 0)
    call expect(nearly, -x(:, 1:1), 1)
    call expect(nearly, x, rows)
  end if
  call MPI_Barrier(comm)
  if (rank == 1) then
    call expect(twice, x, 0)
    x(2, 7::10) = -x(2, 7::10)
    call expect(twice, x, size(x(2, 7::10)))
    call expect(twice, x(:, rows:1:-1), 0)
    x(2, 7::10) = -x(2, 7::10)
    call expect(nearly, x + 0.1, 0, x)
    call expect(nearly, x + 0.5, rows)
  end if
  call coupled%close()
  call MPI_Finalize()
  if (failures == 0) print "(a, i0, a)", "rank ", rank, " is right"

contains

  !> Ask for rows; the model must get so many of them, and answer those of `known`.
  subroutine expect(asked, rows_asked, computed, known)
    type(service), intent(in) :: asked
    real(real32), intent(in) :: rows_asked(:, :)
    integer, intent(in) :: computed
    real(real32), intent(in), optional :: known(:, :)
    real(real32) :: y(3, size(rows_asked, 2)), right(3, size(rows_asked, 2))
    type(request_stats) :: stats
    right = 2 * rows_asked
    if (present(known)) right = 2 * known
    y = 0
    call asked%infer(rows_asked, y, 60.0_c_double, stats)
    if (all(y == right) .and. stats%batch_rows == computed &
      .and. stats%rows == size(y, 2, int64)) return
    failures = failures + 1
    print "(a, 3(i0, a))", "rank ", rank, ": the model got ", stats%batch_rows, " rows, not ", &
      computed, ", or an answer is wrong"
  end subroutine expect
end program cached
