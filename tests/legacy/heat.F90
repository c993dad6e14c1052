! heat.c in Fortran: a code that says MPI_COMM_WORLD everywhere and knows nothing of mpiserve.
! Compiled with -DF08 it uses mpi_f08, with -DMODULE mpi, else mpif.h. Rank 0 prints the answer.
! With -DASKS it asks a service.
#ifdef F08
#define HANDLE(kind) type(kind)
#else
#define HANDLE(kind) integer
#endif

module plate
#ifdef F08
  use mpi_f08
#elif defined(MODULE)
  use mpi
#endif
  use iso_c_binding
#ifdef ASKS
  use mpiserve, only: session, service
#endif
  implicit none
#if !defined(F08) && !defined(MODULE)
  include 'mpif.h'
#endif
  integer, parameter :: cells = 16, steps = 50
  double precision :: cell(0:cells + 1, 0:cells + 1)
  HANDLE(MPI_Comm) :: cart

contains

  integer function rank_of(comm)
    HANDLE(MPI_Comm), intent(in) :: comm
    integer :: ierr
    call MPI_Comm_rank(comm, rank_of, ierr)
  end function

  integer function size_of(comm)
    HANDLE(MPI_Comm), intent(in) :: comm
    integer :: ierr
    call MPI_Comm_size(comm, size_of, ierr)
  end function

  subroutine say(what, mine)
    character(*), intent(in) :: what
    double precision, intent(in) :: mine
    double precision :: one(1), total(1), most(1)
    integer :: ierr
    one = mine
    call MPI_Reduce(one, total, 1, MPI_DOUBLE_PRECISION, MPI_SUM, 0, MPI_COMM_WORLD, ierr)
    call MPI_Allreduce(one, most, 1, MPI_DOUBLE_PRECISION, MPI_MAX, MPI_COMM_WORLD, ierr)
    if (rank_of(MPI_COMM_WORLD) == 0) print '(a, ": ", 2es22.12)', what, total, most
  end subroutine

  subroutine truth(what, holds)
    character(*), intent(in) :: what
    logical, intent(in) :: holds
    call say(what, merge(1d0, 0d0, holds))
  end subroutine

  subroutine make_plate
    integer :: dims(2), ierr
    logical :: periods(2)
    dims = 0
    periods = [.true., .false.]
    call MPI_Dims_create(size_of(MPI_COMM_WORLD), 2, dims, ierr)
    call MPI_Cart_create(MPI_COMM_WORLD, 2, dims, periods, .false., cart, ierr)
  end subroutine

  subroutine shift(direction, mine_low, mine_high, halo_low, halo_high)
    integer, intent(in) :: direction
    double precision, intent(in) :: mine_low(:), mine_high(:)
    double precision, intent(out) :: halo_low(:), halo_high(:)
    double precision :: out_low(cells + 2), out_high(cells + 2)
    double precision :: in_low(cells + 2), in_high(cells + 2)
    integer :: low, high, ierr
    out_low = mine_low
    out_high = mine_high
    in_low = 0
    in_high = 0
    call MPI_Cart_shift(cart, direction, 1, low, high, ierr)
    call MPI_Sendrecv(out_high, cells + 2, MPI_DOUBLE_PRECISION, high, 1, in_low, cells + 2, &
        MPI_DOUBLE_PRECISION, low, 1, cart, MPI_STATUS_IGNORE, ierr)
    call MPI_Sendrecv(out_low, cells + 2, MPI_DOUBLE_PRECISION, low, 2, in_high, cells + 2, &
        MPI_DOUBLE_PRECISION, high, 2, cart, MPI_STATUS_IGNORE, ierr)
    halo_low = in_low
    halo_high = in_high
  end subroutine

  subroutine heat
    integer :: i, j, step
    cell = 0
    do j = 1, cells
      do i = 1, cells
        cell(i, j) = mod(i * j, 7) + rank_of(MPI_COMM_WORLD)
      end do
    end do
    do step = 1, steps
      call shift(0, cell(1, :), cell(cells, :), cell(0, :), cell(cells + 1, :))
      call shift(1, cell(:, 1), cell(:, cells), cell(:, 0), cell(:, cells + 1))
      cell(1:cells, 1:cells) = (cell(0:cells - 1, 1:cells) + cell(2:cells + 1, 1:cells) &
          + cell(1:cells, 0:cells - 1) + cell(1:cells, 2:cells + 1)) / 4
    end do
    call say('heat', sum(cell(1:cells, 1:cells)))
  end subroutine

  subroutine splits
    HANDLE(MPI_Comm) :: half, node, same
    integer :: how, ierr, rank
    rank = rank_of(MPI_COMM_WORLD)
    call MPI_Comm_split(MPI_COMM_WORLD, mod(rank, 2), -rank, half, ierr)
    call say('rank in my half', rank_of(half) * 10d0 + size_of(half))
    call MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, node, ierr)
    call say('ranks of my node', dble(size_of(node)))
    call MPI_Comm_dup(MPI_COMM_WORLD, same, ierr)
    call MPI_Comm_compare(same, MPI_COMM_WORLD, how, ierr)
    call truth('a duplicate is congruent', how == MPI_CONGRUENT)
    call MPI_Comm_free(half, ierr)
    call MPI_Comm_free(node, ierr)
    call MPI_Comm_free(same, ierr)
  end subroutine

  subroutine groups
    HANDLE(MPI_Group) :: all, first
    HANDLE(MPI_Comm) :: one
    integer :: n, ierr, members(1)
    members = 0
    call MPI_Comm_group(MPI_COMM_WORLD, all, ierr)
    call MPI_Group_size(all, n, ierr)
    call say('ranks of the group', dble(n))
    call MPI_Group_incl(all, 1, members, first, ierr)
    call MPI_Comm_create(MPI_COMM_WORLD, first, one, ierr)
    call truth('only the first is in', one /= MPI_COMM_NULL)
    if (one /= MPI_COMM_NULL) call MPI_Comm_free(one, ierr)
    call MPI_Group_free(first, ierr)
    call MPI_Group_free(all, ierr)
  end subroutine

  ! 4096 bytes: with Debian's MPICH 4.0.2 puts into a window of 4 bytes go to wrong ranks. They do
  ! in MPI_Win_create too, which is only created here.
  subroutine windows
    integer, parameter :: doubles = 512
    HANDLE(MPI_Win) :: window, created
    type(c_ptr) :: base
    double precision, pointer :: memory(:)
    double precision :: mine(1), own(doubles)
    integer :: rank, ierr
    rank = rank_of(MPI_COMM_WORLD)
    call MPI_Win_create(own, 8_MPI_ADDRESS_KIND * doubles, 8, MPI_INFO_NULL, MPI_COMM_WORLD, &
        created, ierr)
    call MPI_Win_allocate(8_MPI_ADDRESS_KIND * doubles, 8, MPI_INFO_NULL, MPI_COMM_WORLD, base, &
        window, ierr)
    call c_f_pointer(base, memory, [doubles])
    memory = -1
    mine = 100 + rank
    call MPI_Barrier(MPI_COMM_WORLD, ierr)
    call MPI_Win_fence(0, window, ierr)
    call MPI_Put(mine, 1, MPI_DOUBLE_PRECISION, mod(rank + 1, size_of(MPI_COMM_WORLD)), &
        0_MPI_ADDRESS_KIND, 1, MPI_DOUBLE_PRECISION, window, ierr)
    call MPI_Win_fence(0, window, ierr)
    call say('put by my neighbour', memory(1))
    call MPI_Win_free(window, ierr)
    call MPI_Win_free(created, ierr)
  end subroutine

  subroutine attributes
    integer(MPI_ADDRESS_KIND) :: bound
    character(MPI_MAX_OBJECT_NAME) :: name
    logical :: found
    integer :: length, ierr
    call MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, bound, found, ierr)
    call truth('the bound of tags is there', found .and. bound >= 32767)
    call MPI_Comm_get_name(MPI_COMM_WORLD, name, length, ierr)
    call truth('it has its name', name(:length) == 'MPI_COMM_WORLD')
    call MPI_Comm_set_name(MPI_COMM_WORLD, 'plate', ierr)
    call MPI_Comm_get_name(MPI_COMM_WORLD, name, length, ierr)
    call truth('it can be renamed', name(:length) == 'plate')
  end subroutine

  subroutine errors
    HANDLE(MPI_Errhandler) :: usual
    integer :: one(1), ierr
    one = 1
    call MPI_Comm_get_errhandler(MPI_COMM_WORLD, usual, ierr)
    call truth('errors are fatal', usual == MPI_ERRORS_ARE_FATAL)
    call MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN, ierr)
    call MPI_Send(one, 1, MPI_INTEGER, size_of(MPI_COMM_WORLD), 0, MPI_COMM_WORLD, ierr)
    call truth('no such rank', ierr /= MPI_SUCCESS)
    call MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_ARE_FATAL, ierr)
  end subroutine

  subroutine files
    HANDLE(MPI_File) :: file
    character :: mine(1)
    integer(MPI_OFFSET_KIND) :: at, bytes
    integer :: ierr
    mine = 'a'
    at = rank_of(MPI_COMM_WORLD)
    call MPI_File_open(MPI_COMM_WORLD, 'heat.out', MPI_MODE_CREATE + MPI_MODE_RDWR, &
        MPI_INFO_NULL, file, ierr)
    call MPI_File_write_at_all(file, at, mine, 1, MPI_CHARACTER, MPI_STATUS_IGNORE, ierr)
    call MPI_File_sync(file, ierr)
    call MPI_Barrier(MPI_COMM_WORLD, ierr)
    call MPI_File_get_size(file, bytes, ierr)
    call MPI_File_close(file, ierr)
    call say('bytes in the file', dble(bytes))
  end subroutine

#ifdef ASKS
  subroutine ask
    type(session) :: joined, second
    type(service) :: twice
    real(c_float) :: x(3, 2), y(3, 2)
    integer :: ierr
    x = rank_of(MPI_COMM_WORLD) + 1
    call joined%open(MPI_COMM_WORLD)
    call second%open(MPI_COMM_WORLD, ierr)
    call say('a second open', dble(ierr))
    call joined%find('twice', twice)
    call twice%infer(x, y)
    call joined%close()
    call say('twice', dble(sum(y)))
  end subroutine
#endif
end module

program main
  use plate
  implicit none
  integer :: ierr, provided
#ifdef F08
  call MPI_Init_thread(MPI_THREAD_SINGLE, provided)
  call MPI_Barrier(MPI_COMM_WORLD)
#else
  call MPI_Init(ierr)
  call MPI_Query_thread(provided, ierr)
#endif
  call make_plate
  call heat
  call splits
  call groups
  call windows
  call attributes
  call errors
  call files
#ifdef ASKS
  call ask
#endif
  call MPI_Comm_free(cart, ierr)
  call MPI_Finalize(ierr)
end program
