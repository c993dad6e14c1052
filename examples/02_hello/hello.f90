!> Every simulation rank queries a service with three temperatures. Without ierr an error ends the
!> program with its text.
program hello
  use, intrinsic :: iso_fortran_env, only: real32
  use mpi_f08
  use mpiserve, only: session, service
  implicit none
  type(session) :: coupled
  type(service) :: thermometer
  type(MPI_Comm) :: comm
  integer :: rank, i
  real(real32) :: celsius(1, 3), fahrenheit(1, 3)  ! the rows are the last dimension

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("fahrenheit", thermometer)
  celsius(1, :) = [-40, 0, 100] + rank
  call thermometer%infer(celsius, fahrenheit)
  do i = 1, 3
    print "('rank ', i0, ': ', f6.1, ' C is ', f6.1, ' F')", rank, celsius(1, i), fahrenheit(1, i)
  end do
  call coupled%close()
  call MPI_Finalize()
end program hello
