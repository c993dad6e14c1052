!> One simulation rank does everything wrong that it can, and gets the code and the text that the
!> interface promises; then it asks rightly, and the answer is right.
program wrong_use
  use, intrinsic :: iso_c_binding, only: c_f_pointer
  use, intrinsic :: iso_fortran_env, only: int8, real32, real64, real128
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: coupled, never, copy
  type(service) :: twice, none
  type(request) :: pending, again
  type(buffer) :: taken, same
  type(service_info) :: info
  real(real32), target :: x(3, 4), y(3, 4), wide(6, 4)
  real(real64) :: double(3, 4)
  complex(real32) :: imaginary(3, 4)
  real(real128) :: quadruple(3, 4)
  logical :: default_logical(3, 4), done
  character(len=4) :: comm_text
  real(real32) :: comm_real
  type(tensor) :: given(1), first(1)
  real(real32), pointer :: place(:, :)
  integer :: comm_array(2), ierr, n, failures

  failures = 0
  x = 1
  wide = -1
  default_logical = .true.
  imaginary = 0
  quadruple = 0
  double = 0

  ! Before open.
  call never%get_comm(n, ierr)
  call expect(ierr, mpiserve_earg, "session is NULL")
  call never%find("twice", none, ierr)
  call expect(ierr, mpiserve_earg, "session is NULL")
  call none%infer(x, y, ierr)
  call expect(ierr, mpiserve_earg, "service is NULL")
  call pending%wait(ierr)
  call expect(ierr, mpiserve_earg, "session is NULL")
  call never%open(0, ierr)
  call expect(ierr, mpiserve_estate, "MPI is not running")

  call MPI_Init()
  call never%open(comm_real, ierr)
  call expect(ierr, mpiserve_earg, "a communicator is an integer or a type(MPI_Comm)")
  call never%open(comm_text, ierr)
  call expect(ierr, mpiserve_earg, "a communicator is an integer")
  call never%open(comm_array, ierr)
  call expect(ierr, mpiserve_earg, "a communicator is an integer")
  call never%open(MPI_COMM_NULL, ierr)
  call expect(ierr, mpiserve_earg, "world is MPI_COMM_NULL")
  call coupled%open(MPI_COMM_WORLD)

  ! It stays open, and what follows uses it.
  call coupled%open(MPI_COMM_WORLD, ierr)
  call expect(ierr, mpiserve_estate, "this session is open: close it first")
  call coupled%open(comm_text, ierr)
  call expect(ierr, mpiserve_estate, "this session is open: close it first")
  call never%open(MPI_COMM_WORLD, ierr)
  call expect(ierr, mpiserve_estate, "these ranks have one at a time; close it first")

  ! Handles and numbers.
  call coupled%get_comm(comm_real, ierr)
  call expect(ierr, mpiserve_earg, "a communicator is an integer")
  call coupled%find("twce", none, ierr)
  call expect(ierr, mpiserve_enotfound, "there is 'twice'")
  call coupled%at(2, none, ierr)
  call expect(ierr, mpiserve_earg, "service 1 of 1")
  call coupled%find("twice", twice)

  ! Arrays.
  call twice%infer(x(:, 1), y, ierr)
  call expect(ierr, mpiserve_eshape, "shape is [3], the signature says [rows, 3]")
  call twice%infer(1.0_real32, y, ierr)
  call expect(ierr, mpiserve_eshape, "shape is [1], the signature says [rows, 3]")
  call twice%infer(x(1:2, :), y, ierr)
  call expect(ierr, mpiserve_eshape, "shape is [4, 2]")
  call twice%infer(x(:, 1:0), y, ierr)
  call expect(ierr, mpiserve_erows, "at least 1 is needed")
  call twice%infer(x(:, 1:2), y, ierr)
  call expect(ierr, mpiserve_erows, "other tensors of the call have more or less")
  call twice%infer(double, y, ierr)
  call expect(ierr, mpiserve_edtype, "dtype is float64, the signature says float32")
  call twice%infer(default_logical, y, ierr)
  call expect(ierr, mpiserve_edtype, "the signature says float32, which is real(real32)")
  call twice%infer(imaginary, y, ierr)
  call expect(ierr, mpiserve_edtype, "dtype is complex64, the signature says float32")
  call twice%infer(quadruple, y, ierr)
  call expect(ierr, mpiserve_edtype, "no dtype fits the type of this array (16 bytes an element)")
  call twice%infer("text", y, ierr)
  call expect(ierr, mpiserve_edtype, "the signature says float32") ! gfortran 12 calls it int8
  call twice%infer(reshape(x, [1, 1, 1, 1, 1, 1, 1, 3, 4]), y, ierr)
  call expect(ierr, mpiserve_eshape, "more than 8 dimensions")
  call twice%infer_tensors([input(x, "z")], [output(y)], ierr)
  call expect(ierr, mpiserve_ename, "input 'z' is unknown; the signature has x")
  call twice%infer_tensors([input(x), input(x)], [output(y)], ierr)
  call expect(ierr, mpiserve_eshape, "2 inputs given, the signature has 1")

  call twice%infer(x, y, ierr, row_dims=3)
  call expect(ierr, mpiserve_earg, "row_dims is not 1 to 2")
  call twice%infer_tensors([input(x, row_dims=-1)], [output(y)], ierr)
  call expect(ierr, mpiserve_earg, "row_dims is not 1 to 2")
  call twice%submit(x, y, pending, ierr, row_dims=0)
  call expect(ierr, mpiserve_earg, "row_dims is not 1 to 2")
  call twice%infer(x, y, ierr, row_dims=1)
  call expect(ierr, mpiserve_eshape, "shape is [3, 4], the signature says [rows, 3]")

  ! What input() gives is for one call; most of what no call takes is dropped, the rest at the end.
  given = [input(x)]
  call twice%infer_tensors(given, [output(y)])
  call twice%infer_tensors(given, [output(y)], ierr)
  call expect(ierr, mpiserve_estate, "is for one call")
  given = [input(x)]
  call twice%infer_tensors(given, [output(double)], ierr)
  call expect(ierr, mpiserve_edtype, "dtype is float64")
  call twice%submit_tensors(given, [output(y)], pending, ierr)
  call expect(ierr, mpiserve_estate, "is for one call")
  first = [input(x)]
  do n = 1, 2000
    given = [input(x)]
  end do
  call twice%infer_tensors(first, [output(y)], ierr)
  call expect(ierr, mpiserve_estate, "dropped, since input() was called 1024 times after it")
  call twice%infer_tensors(given, [output(y)])

  ! In-place memory is not copied: it is read when the call is.
  call twice%buffer_take(4, taken)
  call c_f_pointer(taken%inputs(1), place, [3, 4])
  place = 1
  given = [input(place)]
  place = 3
  call twice%infer_tensors(given, [output(y)])
  call check(all(y == 6))
  given = [input(place(:, 2:3))]
  place = 4
  call twice%infer_tensors(given, [output(y(:, 1:2))])
  call check(all(y(:, 1:2) == 8))
  given = [input(place + 1)]
  place = 5
  call twice%infer_tensors(given, [output(y)])
  call check(all(y == 10))
  call twice%buffer_give(taken)

  ! Requests and buffers that have ended.
  call twice%submit(x, y, pending)
  again = pending
  call pending%wait()
  call pending%wait(ierr)
  call expect(ierr, mpiserve_estate, "no such request: it has ended, or never was")
  call again%wait(1.0_real64, ierr)
  call expect(ierr, mpiserve_estate, "no such request")
  call again%test(done, ierr)
  call expect(ierr, mpiserve_estate, "no such request")
  call again%cancel(ierr)
  call expect(ierr, mpiserve_estate, "no such request")
  call twice%buffer_take(1000, taken, ierr)
  call expect(ierr, mpiserve_erows, "1 to max_batch_rows = 64")
  call twice%buffer_take(4, taken)
  same = taken
  call twice%buffer_give(taken)
  call twice%buffer_give(same, ierr)
  call expect(ierr, mpiserve_estate, "given back, or never taken")
  call twice%buffer_give(taken, ierr)
  call expect(ierr, mpiserve_estate, "given back, or never taken")

  ! A submit that fails leaves a request that is none, and an error of before does not stay.
  call twice%submit(x(1:2, :), wide(1:6:2, :), pending, ierr)
  call expect(ierr, mpiserve_eshape, "shape is [4, 2]")
  call pending%wait(ierr)
  call expect(ierr, mpiserve_estate, "no such request")

  ! Close with requests in flight: they end, sections included.
  y = 0
  call twice%submit(x, y, again)
  call twice%submit(x, wide(1:6:2, :), pending)
  copy = coupled
  given = [input(x)]
  call coupled%close()
  call check(all(y == 2) .and. all(wide(1:6:2, :) == 2) .and. all(wide(2:6:2, :) == -1))

  ! After close.
  call pending%wait(ierr)
  call expect(ierr, mpiserve_estate, "the session is not open: it was closed, or never opened")
  call again%test(done, ierr)
  call expect(ierr, mpiserve_estate, "the session is not open")
  call pending%cancel(ierr)
  call expect(ierr, mpiserve_estate, "the session is not open")
  call twice%infer(x, y, ierr)
  call expect(ierr, mpiserve_estate, "the session of the service is not open")
  call twice%infer(x, wide(1:6:2, :), 1.0_real64, ierr)
  call expect(ierr, mpiserve_estate, "the session of the service is not open")
  call twice%describe(info, ierr)
  call expect(ierr, mpiserve_estate, "the session of the service is not open")
  call twice%infer_tensors(given, [output(y)], ierr)
  call expect(ierr, mpiserve_estate, "or the last session was closed")
  call copy%count(n, ierr)
  call expect(ierr, mpiserve_estate, "the session is not open")
  call copy%close(ierr)
  call expect(ierr, mpiserve_estate, "the session is not open")
  call MPI_Finalize()
  if (failures == 0) print "(a)", "every error is what it should be"

contains

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
    print "(a)", "an output is wrong"
  end subroutine check
end program wrong_use
