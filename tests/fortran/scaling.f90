!> One simulation rank changes how many replicas of a service serve; each checks what it sees.
program scaling
  use, intrinsic :: iso_c_binding, only: c_double
  use, intrinsic :: iso_fortran_env, only: real32
  use mpi_f08
  use mpiserve
  implicit none
  integer, parameter :: all_replicas = 3
  real(c_double), parameter :: long = 60
  type(session) :: coupled
  type(service) :: twice
  type(MPI_Comm) :: comm
  integer :: rank, ierr, failures

  failures = 0
  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call coupled%find("twice", twice)
  call expect_serving(2)
  if (rank == 0) call coupled%scale("twice", all_replicas, long)
  call expect_serving(all_replicas)
  if (rank == 1) call coupled%scale("twice  ", 1, 60.0)
  call expect_serving(1)
  if (rank == 0) call coupled%stop("twice", long)
  call expect_serving(0)
  if (rank == 1) call coupled%start("twice", 60.0, ierr)
  if (rank == 1) call check(ierr == mpiserve_ok, "start")
  call expect_serving(2)
  call coupled%scale("twice", 4, long, ierr)
  call expect(ierr, mpiserve_earg, "4 replicas; it has 2, and 1 spare ranks can serve it")
  call coupled%scale("thrice", 1, long, ierr)
  call expect(ierr, mpiserve_enotfound, "'twice'")
  call coupled%start("thrice", long, ierr)
  call expect(ierr, mpiserve_enotfound, "'twice'")
  call coupled%stop("thrice", long, ierr)
  call expect(ierr, mpiserve_enotfound, "'twice'")
  call expect_serving(2)
  call coupled%close()
  call MPI_Finalize()
  if (failures == 0) print "(a, i0, a)", "rank ", rank, " saw what each change did"

contains

  !> The first ones serve, and the others have been stopped, or are spares.
  subroutine expect_serving(n)
    integer, intent(in) :: n
    integer :: i
    call MPI_Barrier(comm)
    do i = 1, all_replicas
      call expect_state(i, i <= n)
    end do
    if (n > 0) then
      call coupled%wait_ready("twice", long)
      do i = 1, 20
        call expect_answer(real(10 * i + rank, real32), mpiserve_ok)
      end do
    else
      call coupled%wait_ready("twice", 0.05, ierr)
      call expect(ierr, mpiserve_etimeout, "'twice' was not ready within 0.05 s")
      call expect_answer(0.0_real32, mpiserve_emodel)
    end if
    call MPI_Barrier(comm)
  end subroutine expect_serving

  subroutine expect_state(i, serves)
    integer, intent(in) :: i
    logical, intent(in) :: serves
    type(replica_state) :: state
    call coupled%get_state("twice", state, i)
    call check(state%rank == 1 + i, "rank of a replica")
    if (serves) call check(state%state == mpiserve_ready .or. state%state == mpiserve_busy, "ready")
    if (.not. serves) call check(state%state == mpiserve_launched, "launched")
    call check((state%entered_ns(mpiserve_ready) > state%entered_ns(mpiserve_launched)) &
      .eqv. serves, "times of states")
  end subroutine expect_state

  subroutine expect_answer(value, code)
    real(real32), intent(in) :: value
    integer, intent(in) :: code
    real(real32) :: x(3, 4), y(3, 4)
    x = value
    call twice%infer(x, y, ierr)
    if (code == mpiserve_ok) then
      call check(ierr == mpiserve_ok .and. all(y == 2 * x), "answer")
    else
      call expect(ierr, code, "'twice' was stopped, and serves nowhere")
    end if
  end subroutine expect_answer

  subroutine expect(code, wanted, text)
    integer, intent(in) :: code, wanted
    character(len=*), intent(in) :: text
    call check(code == wanted .and. index(mpiserve_last_error(), text) > 0, text)
  end subroutine expect

  subroutine check(right, what)
    logical, intent(in) :: right
    character(len=*), intent(in) :: what
    if (right) return
    failures = failures + 1
    print "(a, i0, 4a)", "rank ", rank, ", ", what, ": ", mpiserve_last_error()
  end subroutine check
end program scaling
