!> Doubles for models that compute in float32, two requests at a time: one of them overflows.
program doubles
  use, intrinsic :: iso_fortran_env, only: int32, real32, real64
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: coupled
  type(service) :: twice, turned, counted
  type(request) :: pending, beyond
  real(real64), target :: x(3, 4), y(3, 4), far(3, 4), nothing(3, 4)
  complex(real64), target :: z(3, 4), w(3, 8)
  integer(int32) :: counts(3, 4), same(3, 4)
  integer(int32), target :: many(3, 30), all_of_them(3, 30), again(3, 30)
  integer :: i, ierr, failures

  failures = 0
  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%find("twice", twice)
  call coupled%find("turned", turned)
  x = reshape([(i / 3.0_real64, i = 1, 12)], [3, 4])
  x(1, 4) = 1e-40_real64
  x(2, 4) = 1e-300_real64
  far = 1
  far(:, 2) = -1e39_real64
  call twice%submit(x, y, pending)
  call twice%submit(far, nothing, beyond)
  call pending%wait()
  call beyond%wait(ierr)
  call check(ierr == mpiserve_emodel)
  print "(a)", mpiserve_last_error()
  call check(all(y == real(2 * real(x, real32), real64)) .and. y(1, 4) > 0 .and. .not. y(2, 4) > 0)
  z = cmplx(x, -x / 7, real64)
  w = 0
  call turned%infer(z, w(:, ::2))  ! a section is packed, and unpacked
  call check(all(w(:, ::2) == cmplx(-real(aimag(z), real32), real(real(z), real32), real64)))
  call check(all(w(:, 2::2) == 0))
  call turned%infer(cmplx(z, kind=real32), w(:, :4), ierr)
  call check(ierr == mpiserve_edtype)
  call check(index(mpiserve_last_error(), "dtype is complex64, the signature says complex128") > 0)
  call coupled%find("counted", counted)
  counts = reshape([(i - 7, i = 1, 12)], [3, 4])
  call counted%infer(counts, same)  ! integers alone, which hold the bits of uint32
  call check(all(same == counts))
  many = reshape([(7 * i, i = 1, 90)], [3, 30])
  call counted%submit(many, all_of_them, pending)  ! ten batches in one request, and at once
  call counted%infer(many, again)
  call pending%wait()
  call check(all(all_of_them == many) .and. all(again == many))
  call coupled%close()
  call MPI_Finalize()
  if (failures == 0) print "(a)", "right"

contains

  subroutine check(right)
    logical, intent(in) :: right
    if (right) return
    failures = failures + 1
    print "(a)", "wrong"
  end subroutine check
end program doubles
