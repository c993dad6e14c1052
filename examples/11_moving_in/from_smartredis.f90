!> What a code that calls SmartRedis becomes with mpiserve: put, run, get, one or several at a time.
program from_smartredis
  use, intrinsic :: iso_fortran_env, only: int8
  use mpi_f08
  use mpiserve, only: session, service, request
  implicit none
  integer, parameter :: width = 32, height = 24, several = 3
  type(session) :: coupled
  type(service) :: network
  type(request) :: pending(several)
  type(MPI_Comm) :: comm
  integer(int8) :: pixels(width, height, 3, 1)
  real, target :: scores(10, several)
  integer :: rank, k

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("image", network)

  ! One image: put_tensor, run_script, run_model and unpack_tensor are one call.
  call paint(0)
  call network%infer(pixels, scores(:, 1:1))
  call show("one", scores(:, 1:1))

  ! Several at once: no keys, since each request has its own output.
  do k = 1, several
    call paint(k)
    call network%submit(pixels, scores(:, k:k), pending(k))
  end do
  do k = 1, several
    call pending(k)%wait(60.0)
  end do
  call show("several", scores)
  call coupled%close()
  call MPI_Finalize()

contains

  !> An image of the simulation, another one for each rank and number: bytes from 0 to 127.
  subroutine paint(number)
    integer, intent(in) :: number
    integer :: i
    pixels = reshape([(int(modulo(7*i + rank + 10*number, 128), int8), i=1, size(pixels))], &
      shape(pixels))
  end subroutine paint

  !> With all digits, so that answers can be compared.
  subroutine show(name, values)
    character(len=*), intent(in) :: name
    real, intent(in) :: values(:, :)
    print "(a, ' ', i0, *(es17.8e3))", name, rank, values
  end subroutine show
end program from_smartredis
