!> A thread that finds the session busy gets an error, and what the others do stays right: nothing
!> is given up, and sections are written when their request ends.
program threads
  use, intrinsic :: iso_fortran_env, only: real64
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: coupled
  type(service) :: held
  type(request) :: pending
  real(real64), target :: x(5), y(5), wide_x(10), wide_y(10)
  integer :: provided, code, unit, failures
  logical :: done

  failures = 0
  wide_x = 3
  wide_y = -1
  x = 1
  call MPI_Init_thread(MPI_THREAD_SERIALIZED, provided)
  call coupled%open(MPI_COMM_WORLD)
  call coupled%find("held", held)
  call held%submit(wide_x(::2), wide_y(::2), pending)
  !$omp parallel sections num_threads(2) private(code)
  !$omp section
  ! The model answers when the other thread has seen what it wants to see.
  code = mpiserve_estate
  do while (code == mpiserve_estate)
    call held%infer(x, y, code)
  end do
  call check(code == mpiserve_ok, "infer")
  !$omp section
  code = mpiserve_etimeout
  do while (code == mpiserve_etimeout)
    call pending%wait(0.0, code)
  end do
  call check(busy(code), "wait")
  call pending%test(done, code)
  call check(busy(code) .and. .not. done, "test")
  call pending%cancel(code)
  call check(busy(code), "cancel")
  call coupled%close(code)
  call check(busy(code), "close")
  open (newunit=unit, file="go", status="new")
  close (unit)
  !$omp end parallel sections
  call pending%wait(code)
  call check(code == mpiserve_ok, "wait, when the session is free")
  call check(all(wide_y(1::2) == 6) .and. all(wide_y(2::2) == -1), "the section")
  call check(all(y == 2), "the array")

  ! What fail() gives up is not written later.
  wide_y = -1
  call held%submit(wide_x(::2), wide_y(::2), pending)
  call coupled%fail("on purpose")
  call pending%wait(code)
  call check(code == mpiserve_estate, "wait, after fail")
  call coupled%close(code)
  call check(all(wide_y == -1), "the section, after fail")
  call MPI_Finalize()
  if (failures == 0) print "(a)", "every thread got what it should"

contains

  logical function busy(code)
    integer, intent(in) :: code
    busy = code == mpiserve_estate .and. index(mpiserve_last_error(), "another thread") > 0
  end function busy

  subroutine check(right, label)
    logical, intent(in) :: right
    character(len=*), intent(in) :: label
    if (right) return
    !$omp atomic
    failures = failures + 1
    print "(2a)", "wrong: ", label
  end subroutine check
end program threads
