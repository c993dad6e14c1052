!> Compute while the model runs: submit, compute, test now and then, fetch the result.
program overlap
  use, intrinsic :: iso_fortran_env, only: error_unit, real64
  use mpi_f08
  use mpiserve, only: session, service, request
  implicit none
  integer, parameter :: slices = 20, terms = 400000
  type(session) :: coupled
  type(service) :: square
  type(request) :: pending
  type(MPI_Comm) :: comm
  ! The library reads x and writes y while this program does something else.
  real(real64), asynchronous :: x(3), y(3)
  real(real64) :: begin, in_turn, overlapped, expected, total
  integer :: rank, at
  logical :: done

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("square", square)
  x = [(rank + at, at=0, 2)]

  call MPI_Barrier(comm)
  begin = MPI_Wtime()
  call square%infer(x, y)
  expected = 0
  do at = 0, slices - 1
    expected = expected + work(at)
  end do
  in_turn = MPI_Wtime() - begin

  call MPI_Barrier(comm)
  begin = MPI_Wtime()
  total = 0
  done = .false.
  call square%submit(x, y, pending)
  do at = 0, slices - 1
    total = total + work(at)
    if (.not. done) call pending%test(done)  ! takes 0.1 us
  end do
  if (.not. done) call pending%wait(60.0_real64)
  overlapped = MPI_Wtime() - begin

  if (total /= expected) error stop "the sums differ"
  print "('rank ', i0, ':', 3f6.1, ', own sum ', f8.6)", rank, y, total
  write (error_unit, "('rank ', i0, ': ', f5.3, ' s in turn, ', f5.3, ' s overlapped')") &
    rank, in_turn, overlapped
  call coupled%close()
  call MPI_Finalize()

contains

  !> One slice of the simulation's own work: some terms of pi squared over six.
  pure function work(at) result(sum)
    integer, intent(in) :: at
    real(real64) :: sum
    integer :: k
    sum = 0
    do k = at * terms + 1, (at + 1) * terms
      sum = sum + 1 / real(k, real64)**2
    end do
  end function work
end program overlap
