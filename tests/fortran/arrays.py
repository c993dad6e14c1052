"""Write a Fortran program that asks with arrays of every kind and rank, and read what it saw.

For each rank a service takes an array of each dtype. The program writes its inputs and
its outputs to a file, as the compiler sees them; nothing of mpiserve takes part in that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from coupling import SERVE

# dtype: Fortran's declaration, and how element j of an array is made.
INTEGER = "int(modulo(j * 37_int64 + 11_int64, 251_int64) - 125_int64, {kind})"
REAL = "real(j, {kind}) * 0.37_{kind} - 5"
COMPLEX = "cmplx(real(j, {kind}) * 0.37_{kind}, -real(j, {kind}), {kind})"
KINDS = {
    "bool": ("logical(c_bool)", "logical(modulo(j, 3_int64) == 0, c_bool)"),
    "uint8": ("integer(int8)", INTEGER.format(kind="int8")),
    "int8": ("integer(int8)", INTEGER.format(kind="int8")),
    "int16": ("integer(int16)", INTEGER.format(kind="int16")),
    "int32": ("integer(int32)", INTEGER.format(kind="int32")),
    "int64": ("integer(int64)", INTEGER.format(kind="int64")),
    "float16": ("integer(int16)", INTEGER.format(kind="int16")),
    "bfloat16": ("integer(int16)", INTEGER.format(kind="int16")),
    "float32": ("real(real32)", REAL.format(kind="real32")),
    "float64": ("real(real64)", REAL.format(kind="real64")),
    "uint16": ("integer(int16)", INTEGER.format(kind="int16")),
    "uint32": ("integer(int32)", INTEGER.format(kind="int32")),
    "uint64": ("integer(int64)", INTEGER.format(kind="int64")),
    "complex64": ("complex(real32)", COMPLEX.format(kind="real32")),
    "complex128": ("complex(real64)", COMPLEX.format(kind="real64")),
}
# What lies in an output where no result belongs.
UNTOUCHED = {"bool": ".true."} | {name: "7" for name in KINDS if name != "bool"}
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}

RANKS = range(8)
ROWS = 4
EXTENTS = (3, 2, 2, 1, 2, 2)  # of the dimensions before the rows
CALLS = ("whole", "section", "pending")

MODEL = """\
import numpy as np


def invert(*arrays):
    \"\"\"All bits the other way round, and the rows.\"\"\"
    return [flip(x)[::-1] for x in arrays]


def flip(x):
    return ~x if x.dtype == bool else (~bits(x)).view(x.dtype).reshape(x.shape)


def bits(x):
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)
"""

PROGRAM = """\
program arrays
  use, intrinsic :: iso_c_binding, only: c_bool
  use, intrinsic :: iso_fortran_env, only: int8, int16, int32, int64, real32, real64
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: coupled
  integer :: unit, code
  character(len=1) :: rank
  call get_command_argument(1, rank)
  call MPI_Init(code)
  call coupled%open(MPI_COMM_WORLD)
  open (newunit=unit, file="seen."//rank, access="stream", form="unformatted", status="replace")
  select case (rank)
{calls}
  end select
  close (unit)
  call coupled%close()
  call MPI_Finalize(code)
contains
{procedures}
end program arrays
"""

PROCEDURE = """
  subroutine {call}_{rank}()
    type(service) :: asked
{declarations}
{fills}
    call coupled%find("invert", asked)
{ask}
{writes}
  end subroutine {call}_{rank}
"""

MAKER = """
  function made_{name}(n) result(values)
    integer, intent(in) :: n
    {kind} :: values(n)
    integer(int64) :: j
    do j = 1, n
      values(j) = {element}
    end do
  end function made_{name}
"""


class Seen(NamedTuple):
    """One array of the program: what went in, and all of the array that was to hold the output."""

    name: str
    dtype: str
    given: np.ndarray
    after: np.ndarray
    expected: np.ndarray


def extents(rank: int) -> tuple[int, ...]:
    """Extents in the order of Fortran: the rows are last."""
    return (*EXTENTS[: rank - 1], ROWS) if rank else ()


def signature(rank: int) -> list[int]:
    """The shape of the service's tensors, for arrays of this rank."""
    return [-1, *reversed(extents(rank)[:-1])]


def config(rank: int) -> str:
    specs = {
        side: ", ".join(
            f'{{ name = "{side}_{name}", dtype = "{name}", shape = {signature(rank)} }}'
            for name in KINDS
        )
        for side in ("in", "out")
    }
    return f"""\
[service.invert]
backend = "python"
model = "model:invert"
inputs = [{specs["in"]}]
outputs = [{specs["out"]}]
max_batch_rows = 16
"""


def is_whole(call: str, rank: int) -> bool:
    return call == "whole" or rank == 0


def parent(call: str, rank: int) -> tuple[int, ...]:
    """Extents of the whole array of which the call takes a section."""
    return tuple(n if is_whole(call, rank) else 2 * n + 1 for n in extents(rank))


def with_mpif(program: str) -> str:
    """The same program for a compiler that has no module of MPI."""
    without = program.replace("  use mpi_f08\n", "")
    return without.replace("  implicit none\n", '  implicit none\n  include "mpif.h"\n', 1)


def section(call: str, rank: int) -> str:
    """The section in Fortran: every second element, the rows from behind."""
    if is_whole(call, rank):
        return ""
    parts = [f"2:{2 * n}:2" for n in extents(rank)[:-1]] + [f"{2 * ROWS}:2:-2"]
    return f"({', '.join(parts)})"


def slices(call: str, rank: int) -> tuple[slice, ...]:
    """The same section of a numpy array, whose axes are the other way round."""
    if is_whole(call, rank):
        return (...,)
    return (slice(2 * ROWS - 1, None, -2), *(slice(1, 2 * n, 2) for n in extents(rank)[-2::-1]))


def procedure(call: str, rank: int) -> str:
    whole, part = parent(call, rank), section(call, rank)
    shape = f"({', '.join(map(str, whole))})"
    deferred = f", allocatable, target :: a_#({':,' * (rank - 1)}:), z_#({':,' * (rank - 1)}:)"
    form = {"declarations": "", "fills": "", "writes": ""}
    for name, (kind, _) in KINDS.items():
        names = deferred.replace("#", name) if rank else f", target :: a_{name}, z_{name}"
        form["declarations"] += f"    {kind}{names}\n"
        if rank:
            form["fills"] += f"    allocate (a_{name}{shape}, z_{name}{shape})\n"
        made = f"made_{name}({int(np.prod(whole))})"
        # The value of a function has no elements; a sum of one number, or any of one, is it.
        alone = f"any({made})" if name == "bool" else f"sum({made})"
        fill = f"reshape({made}, shape(a_{name}))" if rank else alone
        form["fills"] += f"    a_{name} = {fill}\n    z_{name} = {UNTOUCHED[name]}\n"
        form["writes"] += f"    write (unit) a_{name}{part}, z_{name}\n"
    # By name, from behind: position and name differ.
    inputs = [f'input(a_{name}{part}, "in_{name}")' for name in reversed(KINDS)]
    outputs = [f'output(z_{name}{part}, "out_{name}")' for name in KINDS]
    glue = ", &\n      "
    both = f"[ &\n      {glue.join(inputs)}], [ &\n      {glue.join(outputs)}]"
    ask = f"    call asked%infer_tensors({both})"
    if call == "pending":
        form["declarations"] += "    type(request) :: pending\n"
        ask = f"    call asked%submit_tensors({both}, pending)\n    call pending%wait()"
    return PROCEDURE.format(call=call, rank=rank, ask=ask, **form)


def program(ranks: Iterable[int] = RANKS, kinds_of_calls: Iterable[str] = CALLS) -> str:
    calls = ""
    for rank in ranks:
        lines = [f"    call {call}_{rank}()\n" for call in kinds_of_calls]
        calls += f'  case ("{rank}")\n' + "".join(lines)
    procedures = [procedure(call, rank) for rank in ranks for call in kinds_of_calls]
    makers = [MAKER.format(name=name, kind=kind, element=e) for name, (kind, e) in KINDS.items()]
    return PROGRAM.format(calls=calls, procedures="".join(makers + procedures))


def run(
    program: Path, mpiexec: Any, folder: Path, rank: int, calls: Iterable[str] = CALLS
) -> list[Seen]:
    """Run the program of these calls with arrays of this rank.

    Return every array that it wrote, and what Python says that it should be.
    """
    (folder / "model.py").write_text(MODEL)
    (folder / "c.toml").write_text(config(rank))
    done = mpiexec(["-n", 1, program, rank, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    with open(folder / f"seen.{rank}", "rb") as file:
        seen = [one(file, rank, call, name) for call in calls for name in KINDS]
        assert not file.read()
    return seen


def one(file: BinaryIO, rank: int, call: str, name: str) -> Seen:
    size = np.dtype(name).itemsize if name != "bfloat16" else 2
    bits = np.dtype(BITS[size])
    words = size // bits.itemsize  # of an element
    given = take(file, bits, (words, *extents(rank)))
    after = take(file, bits, (words, *parent(call, rank)))
    seven = np.array(7, bits if name.endswith("float16") else name)
    expected = np.empty_like(after)
    expected[...] = np.frombuffer(seven.tobytes(), bits)
    flipped = given ^ bits.type(1) if name == "bool" else ~given
    expected[slices(call, rank)] = flipped[::-1] if rank else flipped
    return Seen(f"rank {rank}, {call}", name, given, after, expected)


def take(file: BinaryIO, dtype: np.dtype, fortran: tuple[int, ...]) -> np.ndarray:
    data = file.read(int(np.prod(fortran)) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(fortran[::-1])
