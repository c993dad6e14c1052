!> One simulation rank changes the model of a service: what answers before, between and after, and
!> the errors of versions that are none.
program reload
  use, intrinsic :: iso_c_binding, only: c_double
  use, intrinsic :: iso_fortran_env, only: real32
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: coupled
  type(service) :: times
  type(replica_state) :: state
  integer :: ierr, failures

  failures = 0
  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%find("times", times)
  call expect_factor(2, 1)
  ! Blanks at the end of a name of fixed length are not part of it.
  call coupled%reload("times  ", "3   ", 60.0_c_double)
  call expect_factor(3, 2)
  call coupled%reload("times", "", 60.0_c_double)
  call expect_factor(3, 3)
  call coupled%reload("times", "many", 60.0_c_double, ierr)
  call expect(ierr, mpiserve_emodel, "invalid literal")
  call expect(ierr, mpiserve_emodel, "the version before goes on")
  call coupled%reload("times", "../2", 60.0_c_double, ierr)
  call expect(ierr, mpiserve_econfig, "a version is letters")
  call coupled%reload("tines", "2", 60.0_c_double, ierr)
  call expect(ierr, mpiserve_enotfound, "there is 'times'")
  call coupled%unload("tines", 60.0_c_double, ierr)
  call expect(ierr, mpiserve_enotfound, "there is 'times'")
  call expect_factor(3, 3)
  call coupled%unload("times", 60.0_c_double)
  call expect_no_model()
  call coupled%get_state("times", state)
  call check(state%state == mpiserve_launched .and. state%rank == 1 .and. state%replica == 0)
  call check(state%entered_ns(mpiserve_ready) < state%entered_ns(mpiserve_launched))
  call coupled%wait_ready("times", 0.01, ierr)
  call expect(ierr, mpiserve_etimeout, "'times' was not ready within 0.01 s")
  call coupled%get_state("times", state, 2, ierr)
  call expect(ierr, mpiserve_earg, "has 1 replicas")
  call coupled%get_state("times", state, 0, ierr)
  call expect(ierr, mpiserve_earg, "has 1 replicas")
  call coupled%reload("times", "5", 60.0_c_double, ierr)
  call check(ierr == mpiserve_ok)
  call coupled%wait_ready("times", 60.0_c_double)
  call coupled%get_state("times", state, 1)
  call check(state%state == mpiserve_ready .or. state%state == mpiserve_busy)
  call expect_factor(5, 4)
  call coupled%close()
  call MPI_Finalize()
  if (failures == 0) print "(a)", "every version answered in its turn"

contains

  subroutine expect_factor(factor, generation)
    integer, intent(in) :: factor, generation
    real(real32) :: x(3, 4), y(3, 4)
    type(request_stats) :: stats
    x = 7
    call times%infer(x, y, 60.0_c_double, stats)
    call check(all(y == factor * x))
    call check(stats%generation == generation)
  end subroutine expect_factor

  subroutine expect_no_model()
    real(real32) :: x(3, 4), y(3, 4)
    x = 7
    call times%infer(x, y, ierr)
    call expect(ierr, mpiserve_emodel, "'times' has no model now: it was unloaded")
  end subroutine expect_no_model

  subroutine expect(code, wanted, text)
    integer, intent(in) :: code, wanted
    character(len=*), intent(in) :: text
    if (code == wanted .and. index(mpiserve_last_error(), text) > 0) return
    failures = failures + 1
    print "(a, i0, a, i0, 4a)", "code ", code, ", not ", wanted, ": ", mpiserve_last_error(), &
      " does not say ", text
  end subroutine expect

  subroutine check(right)
    logical, intent(in) :: right
    if (right) return
    failures = failures + 1
    print "(a)", "a version answered, or was said to have answered, that should not"
  end subroutine check
end program reload
