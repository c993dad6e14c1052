!> What test_lifetimes.py asks with: arrays of every kind, their values, and what spoils them.
module memory
  use, intrinsic :: iso_fortran_env, only: real32, real64
  use mpiserve
  implicit none
  integer, parameter :: n = 5
  real(real64), parameter :: numbers(n) = [3d0, 1d0, 4d0, 1d0, 5d0]
  type cell
    real(real64) :: a = -1, b = -1
  end type cell
  type, extends(cell) :: large
    integer :: more(3) = 0
  end type large
  type nest
    integer :: before = 0
    type(cell) :: cell, pair(3)
  end type nest
  type box_of
    real(real64), allocatable :: values(:)
    type(cell), allocatable :: cells(:)
    real(real64) :: fixed(0:n - 1)
  end type box_of
  type(session) :: coupled
  type(service) :: one, two
  type(request) :: pending
  type(request_stats) :: stats
  type(tensor) :: inputs(2), outputs(2)
  integer :: order(n) = [2, 5, 1, 3, 4], whole_numbers(n) = [7, 6, 5, 4, 3]
  real(real64), target :: x(n), wide(2 * n), table(3, n), y(n), wide_y(2 * n), table_y(3, n)
  real(real64), target :: column(n)
  complex(real64) :: complexes(n)
  type(cell), target :: cells(n), cells_y(n)
  type(nest), target :: nests(n), nests_y(n)
  type(box_of), target :: box, box_y
  type(cell), allocatable, target :: heap(:), heap_y(:)
  class(cell), allocatable, target :: poly(:), poly_y(:)
  real(real64), allocatable, target :: later(:), from_zero(:), grid(:, :)
  real(real64), pointer :: to_component(:), to_section(:), to_component_y(:), to_section_y(:)
  real(real64), pointer :: to_zero(:)
  real(real64), pointer, contiguous :: to_whole(:), to_whole_y(:), to_grid(:)
  real(real64) :: a(n), b(n), z(n)
  integer :: ierr, failures = 0, calls = 0
contains
  subroutine set_up()
    allocate (heap(n), heap_y(n), later(n), box%values(n), box%cells(n), box_y%values(n))
    allocate (box_y%cells(n))
    allocate (large :: poly(n), poly_y(n))
    allocate (from_zero(0:n - 1), grid(0:n - 1, -1:1))
    to_zero(0:n - 1) => wide_y(::2)
    to_grid(0:n - 1) => grid(:, 1)
    to_component => heap%b
    to_section => table(3, :)
    to_whole => column
    to_component_y => heap_y%b
    to_section_y => table_y(3, :)
    to_whole_y => later
  end subroutine set_up

  !> The sources have their values again.
  subroutine restore()
    integer :: i
    do i = 1, n
      x(i) = i
      wide(2 * i - 1:2 * i) = [10 + i, -1]
      column(i) = 15 + i
      table(:, i) = [20 + i, 30 + i, 40 + i]
      complexes(i) = cmplx(50 + i, -1, real64)
      cells(i)%b = 60 + i
      heap(i)%b = 70 + i
      nests(i)%cell%b = 80 + i
      nests(i)%pair(2)%b = 90 + i
      box%values(i) = 100 + i
      box%cells(i)%b = 110 + i
      poly(i)%b = 120 + i
    end do
  end subroutine restore

  !> The sources change, and memory that was free is used for something else.
  subroutine spoil()
    real(real64), allocatable :: junk(:)
    integer :: i
    x = -9
    wide = -9
    table = -9
    column = -9
    cells%b = -9
    heap%b = -9
    nests%cell%b = -9
    nests%pair(2)%b = -9
    box%values = -9
    box%cells%b = -9
    poly%b = -9
    do i = 1, 40
      allocate (junk(mod(i, 20) + 1))
      junk = -9
      if (mod(i, 7) == 0) call spoil_stack(8 * i)
      deallocate (junk)
    end do
  end subroutine spoil

  subroutine spoil_stack(m)
    integer, intent(in) :: m
    real(real64) :: junk(m)
    junk = -9
    if (sum(junk) > 0) print *, junk
  end subroutine spoil_stack

  function made(m) result(values)
    integer, intent(in) :: m
    real(real64) :: values(m)
    integer :: i
    values = [(i * i, i=1, m)]
  end function made

  function allocated_by(m) result(values)
    integer, intent(in) :: m
    real(real64), allocatable :: values(:)
    values = made(m) + 1
  end function allocated_by

  function pointed_by() result(values)
    real(real64), pointer :: values(:)
    values => table(1, :)
  end function pointed_by

  function pointed_y() result(values)
    real(real64), pointer :: values(:)
    values => table_y(1, :)
  end function pointed_y

  function zeroed_y() result(values)
    real(real64), pointer :: values(:)
    values(0:n - 1) => from_zero
  end function zeroed_y

  function strided_y() result(values)
    real(real64), pointer :: values(:)
    values(0:n - 1) => table_y(2, :)
  end function strided_y

  subroutine clear()
    from_zero = -1
    grid = -1
    box_y%fixed = -1
    y = -1
    z = -1
    wide_y = -1
    table_y = -1
    later = -1
    cells_y%a = -1
    cells_y%b = -1
    heap_y%b = -1
    nests_y%cell%b = -1
    nests_y%pair(2)%b = -1
    box_y%values = -1
    box_y%cells%b = -1
    poly_y%b = -1
  end subroutine clear

  subroutine check(right, label)
    logical, intent(in) :: right
    character(len=*), intent(in) :: label
    calls = calls + 1
    if (right) return
    failures = failures + 1
    print "(2a)", "wrong: ", label
  end subroutine check

  !> Refused, if the compiler passed a copy; pointers may come through it as they are.
  subroutine right_or_refused(right, label)
    logical, intent(in) :: right
    character(len=*), intent(in) :: label
    logical :: refused
    refused = .false.
    if (ierr == mpiserve_earg) refused = index(mpiserve_last_error(), "a copy of this array") > 0
    call check(refused .or. (ierr == mpiserve_ok .and. right), label)
  end subroutine right_or_refused
end module memory
