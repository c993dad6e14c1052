!> Graphs of any size, two at a time: in batches with those of other ranks, and each alone.
program graphs
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32
  use mpi_f08
  use mpiserve
  implicit none
  integer, parameter :: nodes = 50, edges = 120, width = 4, steps = 30

  type graph
    real(real32), allocatable :: x(:, :), y(:, :)
    integer(int32), allocatable :: edges(:, :)
    real(real32) :: scale, total(width)
  end type graph

  type(session) :: coupled
  type(service) :: network, alone
  type(MPI_Comm) :: comm
  integer :: rank, step, failures, shared

  failures = 0
  shared = 0
  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("network", network)
  call coupled%find("alone", alone)
  do step = 0, steps - 1
    call ask(step)
  end do
  call check(shared > 0, "no batch has several graphs")
  call ask_wrongly()
  call MPI_Allreduce(MPI_IN_PLACE, failures, 1, MPI_INTEGER, MPI_SUM, comm)
  call coupled%close()
  call MPI_Finalize()
  if (failures == 0 .and. rank == 0) print "(a)", "right"

contains

  subroutine make(g, n, m, step)
    type(graph), intent(out) :: g
    integer, intent(in) :: n, m, step
    integer :: i
    allocate (g%x(width, n), g%y(width, n), g%edges(2, m))
    g%scale = 1 / real(1 + step, real32)
    g%x = reshape([(sin(real(rank + step + i, real32)), i = 1, width * n)], [width, n])
    do i = 1, m
      g%edges(:, i) = [modulo(7 * i, n), modulo(i + step, n)]  ! numbered from 0
    end do
  end subroutine make

  subroutine submit(to, g, asked)
    type(service), intent(in) :: to
    type(graph), intent(inout), target :: g
    type(request), intent(out) :: asked
    call to%submit_tensors([input(g%x, "x"), input(g%edges, "edges"), input(g%scale, "scale")], &
      [output(g%y, "y"), output(g%total, "total")], asked)
  end subroutine submit

  subroutine ask(step)
    integer, intent(in) :: step
    type(graph), target :: g(2), same
    type(request) :: asked(2), other
    type(request_stats) :: stats
    integer :: k, n
    do k = 1, 2
      n = modulo(17 * rank + 5 * step + 29 * k, nodes + 1)
      call make(g(k), n, merge(modulo(11 * step + 7 * rank + k, edges + 1), 0, n > 0), step)
      call submit(network, g(k), asked(k))
    end do
    do k = 1, 2
      call asked(k)%wait(60.0, stats=stats)
      if (stats%batch_requests > 1) shared = shared + 1
      same = g(k)
      call submit(alone, same, other)
      call other%wait(60.0)
      call check(all(abs(g(k)%y - same%y) <= 1e-6), "a node is answered in another way than alone")
      call check(all(abs(g(k)%total - same%total) <= 1e-6 * (1 + size(g(k)%x, 2))), "total")
    end do
  end subroutine ask

  !> One rank asks for a node that its graph does not have, and others may be in its batch.
  subroutine ask_wrongly()
    type(graph), target :: g
    type(request) :: asked
    integer :: ierr
    call make(g, 7, 3, 0)
    if (rank == 0) g%edges(2, 3) = 7
    call submit(network, g, asked)
    call asked%wait(60.0, ierr=ierr)
    call check(ierr == merge(mpiserve_earg, 0, rank == 0), "the code of the request")
    if (rank == 0) print "(a)", mpiserve_last_error()
  end subroutine ask_wrongly

  subroutine check(right, what)
    logical, intent(in) :: right
    character(len=*), intent(in) :: what
    if (right) return
    failures = failures + 1
    print "(2a)", "wrong: ", what
  end subroutine check
end program graphs
