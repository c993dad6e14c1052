!> What a solver that calls PhyDLL becomes with mpiserve: fields to the model, fields back.
program from_phydll
  use, intrinsic :: iso_fortran_env, only: real64
  use mpi_f08
  use mpiserve, only: session, service, request, pace, input, output
  implicit none
  integer, parameter :: steps = 6
  type(session) :: coupled
  type(service) :: closure
  type(request) :: pending
  type(pace) :: coupling
  type(MPI_Comm) :: comm
  real(real64), allocatable :: u(:), v(:)
  real(real64), allocatable, target :: source_u(:), source_v(:)
  real(real64) :: advected
  integer :: rank, nodes, step

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("closure", closure)
  nodes = 7 + rank  ! each rank has its own part of the mesh
  allocate (u(nodes), v(nodes), source_u(nodes), source_v(nodes))

  ! In each step: send the fields, and wait for those of the model.
  call start()
  do step = 1, steps
    call closure%infer_tensors([input(u, "u"), input(v, "v")], &
      [output(source_u, "source_u"), output(source_v, "source_v")])
    call advance()
  end do
  call show("blocking")

  ! Compute meanwhile: isend, irecv and their waits.
  call start()
  advected = 0
  do step = 1, steps
    call closure%submit_tensors([input(u), input(v)], [output(source_u), output(source_v)], pending)
    advected = advected + sum(u)/nodes
    call pending%wait(60.0)
    call advance()
  end do
  call show("overlapped")

  ! Every second step: between, the answer of the step before.
  call start()
  call closure%pace(coupling, every=2)
  do step = 1, steps
    call coupling%step_tensors([input(u), input(v)], [output(source_u), output(source_v)])
    call advance()
  end do
  call coupling%close()
  call show("second")
  call coupled%close()
  call MPI_Finalize()

contains

  subroutine start()
    integer :: i
    u = [((rank + i)/16.0_real64, i=1, nodes)]
    v = 1 - u
  end subroutine start

  subroutine advance()
    u = u + 0.125_real64*source_u
    v = v + 0.125_real64*source_v
  end subroutine advance

  !> With all digits, so that answers can be compared.
  subroutine show(name)
    character(len=*), intent(in) :: name
    print "(a, ' ', i0, *(es25.16e3))", name, rank, u, v
  end subroutine show
end program from_phydll
