!> What a code that calls FTorch becomes with mpiserve, one procedure for each situation.
module column_model
  use mpiserve, only: session, service
  implicit none
  private
  public :: begin, tendency_of
  type(service) :: column

contains

  !> Once, in place of torch_model_load.
  subroutine begin(coupled)
    type(session), intent(in) :: coupled
    call coupled%find("column", column)
  end subroutine begin

  !> In each step: nothing to create and nothing to delete.
  subroutine tendency_of(state, tendency)
    real, intent(in) :: state(:, :)
    real, intent(out) :: tendency(:, :)
    call column%infer(state, tendency)
  end subroutine tendency_of
end module column_model

program from_ftorch
  use mpi_f08
  use mpiserve, only: session, service, input, output, mpiserve_eshape, mpiserve_last_error
  use column_model, only: begin, tendency_of
  implicit none
  type(session) :: coupled
  type(MPI_Comm) :: comm
  integer :: rank

  call MPI_Init()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%get_comm(comm)
  call MPI_Comm_rank(comm, rank)
  call tensors()
  call images()
  call loop()
  call several()
  call batches()
  call gradients()
  call coupled%close()
  call MPI_Finalize()

contains

  !> An array is the tensor. Rows first, as in FTorch: row_dims; rows last: without a transposition.
  subroutine tensors()
    type(service) :: shift
    real :: x(2, 3), y(2, 3), mean(2), xt(3, 2), yt(3, 2), mean_t(2)
    integer :: i
    x = rank + reshape([(real(i), i=1, 6)], [2, 3])
    xt = transpose(x)
    call coupled%find("shift", shift)
    call shift%infer_tensors([input(x, row_dims=1)], [output(y, row_dims=1), output(mean)])
    call shift%infer_tensors([input(xt)], [output(yt), output(mean_t)])
    call show("tensor", [transpose(y), yt])
    call show("mean", [mean, mean_t])
  end subroutine tensors

  !> A network of convolutions: the largest score, and its probability.
  subroutine images()
    integer, parameter :: width = 32, height = 24
    type(service) :: network
    real :: image(width, height, 3, 1), scores(10, 1), same(10, 1)
    real :: image_t(1, 3, height, width)  ! as FTorch has it
    integer :: i
    image = reshape([(real(modulo(7*i + rank, 23))/16, i=1, size(image))], shape(image))
    image_t = reshape(image, shape(image_t), order=[4, 3, 2, 1])
    call coupled%find("image", network)
    call network%infer(image, scores)
    call network%infer(reshape(image_t, shape(image), order=[4, 3, 2, 1]), same)
    call show("image", [scores, same])
    call show("likeliest", [real(maxloc(scores(:, 1), 1)), maxval(exp(scores)/sum(exp(scores)))])
  end subroutine images

  !> Time steps of an explicit scheme.
  subroutine loop()
    integer, parameter :: steps = 20
    real :: state(5, 1), tendency(5, 1)
    integer :: i, step
    call begin(coupled)
    state(:, 1) = [(0.25*(rank + i), i=1, 5)]
    do step = 1, steps
      call tendency_of(state, tendency)
      state = state + 0.125*tendency
    end do
    call show("loop", [state])
  end subroutine loop

  !> Two inputs and two outputs, in the order of the model.
  subroutine several()
    type(service) :: pair
    real :: a(4, 1), b(4, 1), total(4, 1), weighted(2, 1)
    integer :: i
    a(:, 1) = [(real(rank + i), i=1, 4)]
    b = 0.5 - a
    call coupled%find("pair", pair)
    call pair%infer_tensors([input(a), input(b)], [output(total), output(weighted)])
    call show("several", [total, weighted])
  end subroutine several

  !> One sample, a batch, a batch of two dimensions, and a mistake.
  subroutine batches()
    type(service) :: column
    real :: one(5, 1), one_y(5, 1), batch(2, 5), batch_y(2, 5), multi(2, 3, 5), multi_y(2, 3, 5)
    real, target :: fields(5, 3, 2), fields_y(5, 3, 2)
    real, contiguous, pointer :: rows(:, :), rows_y(:, :)
    integer :: i, ierr
    call coupled%find("column", column)
    multi = reshape([(real(rank + i)/16, i=1, 30)], [2, 3, 5])
    one(:, 1) = multi(1, 1, :)
    batch = multi(:, 1, :)
    call column%infer(one, one_y)
    call column%infer(batch, batch_y, row_dims=1)
    call column%infer(multi, multi_y, row_dims=2)
    ! The same memory as the tensor [2, 3, 5], seen as [6, 5]: nothing is transposed.
    fields = reshape(multi, shape(fields), order=[3, 2, 1])
    rows(1:5, 1:6) => fields
    rows_y(1:5, 1:6) => fields_y
    call column%infer(rows, rows_y)
    call show("one", [one_y])
    call show("batch", [transpose(batch_y)])
    call show("multi", [reshape(multi_y, shape(fields), order=[3, 2, 1])])
    call show("fields", [fields_y])
    call column%infer(batch, batch_y, ierr=ierr)  ! without row_dims: 5 rows of 2 numbers
    if (ierr /= mpiserve_eshape) error stop "a wrong shape was accepted"
    if (rank == 0) print "('refused: ', a)", mpiserve_last_error()
  end subroutine batches

  !> Derivatives by the inputs: of an expression, and of a network.
  subroutine gradients()
    type(service) :: cubic, column
    real :: a(2), b(2), q(2), dq_da(2), dq_db(2), ones(2)
    real :: state(5, 1), tendency(5, 1), derivative(5, 1), direction(5, 1)
    integer :: i
    a = rank + [2.0, 3.0]
    b = rank + [6.0, 4.0]
    ones = 1
    call coupled%find("cubic.vjp", cubic)
    call cubic%infer_tensors([input(a), input(b), input(ones)], &
      [output(q), output(dq_da), output(dq_db)])
    call show("cubic", [q, dq_da, dq_db])
    state(:, 1) = [(0.25*(rank + i), i=1, 5)]
    direction = 1
    call coupled%find("column.vjp", column)
    call column%infer_tensors([input(state), input(direction)], &
      [output(tendency), output(derivative)])
    call show("backward", [tendency, derivative])
  end subroutine gradients

  !> With all digits, so that answers can be compared.
  subroutine show(name, values)
    character(len=*), intent(in) :: name
    real, intent(in) :: values(:)
    print "(a, ' ', i0, *(es17.8e3))", name, rank, values
  end subroutine show
end program from_ftorch
