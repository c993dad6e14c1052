!> Pass several tensors, by name in any order or by position, and print the error of a mistake.
program many
  use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
  use mpi_f08
  use mpiserve, only: session, service, input, output, mpiserve_edtype, mpiserve_last_error
  implicit none
  integer, parameter :: rows = 2
  type(session) :: coupled
  type(service) :: gas
  type(MPI_Comm) :: comm
  integer :: rank, row, k, ierr
  real(real64) :: temperature(rows), density(rows)
  real(real32) :: fractions(3, rows), flux(3, rows)
  integer(int32) :: phase(rows)

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("gas", gas)
  temperature = [(200 + 100 * (rank + row), row=0, rows - 1)]
  fractions = reshape([(k + rank, k=0, 3 * rows - 1)], [3, rows])
  phase = [(row, row=0, rows - 1)]

  call gas%infer_tensors( &
    [input(phase, "phase"), input(temperature, "temperature"), input(fractions, "fractions")], &
    [output(flux, "flux"), output(density, "density")])
  do row = 1, rows
    print "('rank ', i0, ', row ', i0, ': density ', f6.4, ', flux ', 3(f4.2, :, ' '))", &
      rank, row - 1, density(row), flux(:, row)
  end do

  ! A mistake is found before anything is sent, and the service goes on.
  call gas%infer_tensors([input(temperature), input(fractions), input(int(phase, int64))], &
    [output(density), output(flux)], ierr)
  if (ierr == mpiserve_edtype) print "('rank ', i0, ': ', a)", rank, mpiserve_last_error()
  call gas%infer_tensors([input(temperature), input(fractions), input(phase)], &
    [output(density), output(flux)])
  call coupled%close()
  call MPI_Finalize()
end program many
