"""Arrays whose first dimensions count rows, of ranks 1 to 8, both ways; with prefixed names."""

import numpy as np
from coupling import SERVE, compile_fortran

EXTENTS = (3, 2, 4, 2, 1, 3, 2, 2)
CASES = [(rank, dims) for rank in range(1, 9) for dims in {1, min(2, rank), rank}]

MODEL = """\
import numpy as np


def stamp(x):
    return 3 * x + np.arange(x.size, dtype=x.dtype).reshape(x.shape)
"""

SERVICE = """\
[service.{name}]
backend = "python"
model = "model:stamp"
inputs = [{{ name = "x", dtype = "float32", shape = {shape} }}]
outputs = [{{ name = "y", dtype = "float32", shape = {shape} }}]
max_batch_rows = 4096
"""

# Names of its own that module mpiserve has, too.
PROGRAM = """\
program first_rows
  use mpi_f08
  use mpiserve_prefixed
  implicit none
  type(mpiserve_session) :: session
  integer :: input, output, failures = 0
  call MPI_Init()
  call session%open(MPI_COMM_WORLD)
  open (newunit=output, file="seen", access="stream", form="unformatted", status="replace")
{calls}
  close (output)
  call session%close()
  call MPI_Finalize()
  print "(i0, a)", failures, " failures"
contains
  subroutine check(right, text)
    logical, intent(in) :: right
    character(len=*), intent(in) :: text
    if (right) return
    failures = failures + 1
    print "(2a)", "differs: ", text
  end subroutine check
{procedures}
end program first_rows
"""

PROCEDURE = """
  subroutine {name}()
    real, target :: x({shape}), y({shape}), z({shape})
    real, target :: wide({wide}), wide_y({wide})
    type(mpiserve_service) :: service
    type(mpiserve_request) :: request
    type(mpiserve_request_stats) :: stats
    call session%find("{name}", service)
    x = reshape([(real(modulo(7 * input, 101)), input=1, size(x))], shape(x))
    call service%infer(x, y, row_dims={dims})
    write (output) x, y
    call service%infer(x, z, 60.0, stats, row_dims={dims})
    call check(all(z == y), "{name}: infer")
    z = -1
    call service%infer_tensors([mpiserve_input(x, row_dims={dims})], &
      [mpiserve_output(z, "y", {dims})], 60.0)
    call check(all(z == y), "{name}: infer_tensors")
    wide = -1
    wide_y = -1
    wide({section}) = x
    call service%submit(wide({section}), wide_y({section}), request, row_dims={dims})
    wide = -2
    call request%wait(60.0)
    call check(all(wide_y({section}) == y), "{name}: submit")
    call check(count(wide_y == -1) == size(y), "{name}: submit, around it")
  end subroutine {name}
"""


def config() -> str:
    services = [
        SERVICE.format(name=name(*case), shape=[-1, *EXTENTS[case[1] : case[0]][::-1]])
        for case in CASES
    ]
    names = ", ".join(f'"{name(*case)}"' for case in CASES)
    return "\n".join([*services, f"[pool.all]\nservices = [{names}]\n"])


def name(rank: int, dims: int) -> str:
    return f"stamp_{rank}_{dims}"


def procedure(rank: int, dims: int) -> str:
    first, *others = map(str, EXTENTS[:rank])
    return PROCEDURE.format(
        name=name(rank, dims),
        dims=dims,
        shape=", ".join([first, *others]),
        wide=", ".join([str(2 * int(first)), *others]),
        section=", ".join(["::2", *(":" for _ in others)]),
    )


def expected(x: np.ndarray, dims: int) -> np.ndarray:
    """What the model makes of a Fortran array: rows in the order of memory, the first fastest."""
    order = [*reversed(range(dims)), *reversed(range(dims, x.ndim))]
    tensor = x.transpose(order)
    numbers = np.arange(x.size, dtype=x.dtype).reshape(tensor.shape)
    return (3 * tensor + numbers).transpose(np.argsort(order))


def test_first_dimensions_are_rows(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(config())
    calls = "\n".join(f"  call {name(*case)}()" for case in CASES)
    procedures = "".join(procedure(*case) for case in CASES)
    source = tmp_path / "row_dims.f90"
    source.write_text(PROGRAM.format(calls=calls, procedures=procedures))
    program = compile_fortran(source)
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == "0 failures\n"
    seen = np.fromfile(tmp_path / "seen", np.float32)
    for rank, dims in CASES:
        shape = EXTENTS[:rank]
        x, y = seen[: 2 * np.prod(shape)].reshape(2, -1)
        x, y = x.reshape(shape, order="F"), y.reshape(shape, order="F")
        assert np.array_equal(y, expected(x, dims)), (rank, dims)
        seen = seen[2 * x.size :]
    assert not seen.size
