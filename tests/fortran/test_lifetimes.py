"""Arrays whose memory the compiler makes for one call: right values, or an error that says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from coupling import SERVE, compile_fortran

from mpiserve.tools import build_flags

MEMORY = Path(__file__).with_name("memory.f90")

CONFIG = """\
[service.one]
backend = "python"
model = "model:one"
inputs = [{ name = "a", dtype = "float64", shape = [-1] }]
outputs = [{ name = "p", dtype = "float64", shape = [-1] }]
[service.two]
backend = "python"
model = "model:two"
inputs = [{ name = "a", dtype = "float64", shape = [-1] },
          { name = "b", dtype = "float64", shape = [-1] }]
outputs = [{ name = "p", dtype = "float64", shape = [-1] },
           { name = "q", dtype = "float64", shape = [-1] }]
[pool.both]
services = ["one", "two"]
"""

MODEL = """\
def one(a):
    return 2 * a


def two(a, b):
    return 2 * a, 3 * b
"""

# Every way to give N numbers that the compiler may put into memory of its own.
INPUTS = {
    "whole": "x",
    "component": "cells%b",
    "component of an allocatable array": "heap%b",
    "component of a section": "cells(::1)%b",
    "component of a component": "nests%cell%b",
    "component of an element of a component": "nests%pair(2)%b",
    "allocatable component": "box%values",
    "component of an allocatable component": "box%cells%b",
    "component of a polymorphic array": "poly%b",
    "pointer to a component": "to_component",
    "pointer to a section": "to_section",
    "contiguous pointer": "to_whole",
    "section with a stride": "wide(::2)",
    "section from behind": "x(n:1:-1)",
    "section across": "table(2, :)",
    "vector subscript": "x(order)",
    "vector subscript of a component": "cells(order)%b",
    "expression": "x + 1",
    "parentheses": "(x)",
    "function": "made(n)",
    "allocatable function": "allocated_by(n)",
    "pointer function": "pointed_by()",
    "constant": "[1d0, 2d0, 3d0, 4d0, 5d0]",
    "parameter": "numbers",
    "merge": "merge(to_whole, to_section, x > 2)",
    "reshape": "reshape(table(1:1, :), [n])",
    "conversion": "real(whole_numbers, real64)",
    "real parts": "real(complexes)",
    "block of an expression": "-cells%b * wide(::2)",
}

# Where an answer can be written; those of COPIES may be refused, but by infer().
OUTPUTS = {
    "whole": "y",
    "allocatable": "later",
    "section with a stride": "wide_y(::2)",
    "section from behind": "y(n:1:-1)",
    "section across": "table_y(2, :)",
    "pointer to a section": "to_section_y",
    "contiguous pointer": "to_whole_y",
    "allocatable component": "box_y%values",
    "pointer function": "pointed_y()",
    "allocatable from 0": "from_zero",
    "section across from 0": "grid(:, 0)",
    "pointer from 0": "to_zero",
    "contiguous pointer from 0": "to_grid",
    "component from 0": "box_y%fixed",
    "pointer function, section from 0": "strided_y()",
}
COPIES = {
    "pointer function from 0": "zeroed_y()",
    "component": "cells_y%b",
    "component of an allocatable array": "heap_y%b",
    "component of a component": "nests_y%cell%b",
    "component of a component's element": "nests_y%pair(2)%b",
    "component of an allocatable component": "box_y%cells%b",
    "component of a polymorphic array": "poly_y%b",
    "pointer to a component": "to_component_y",
}

PROGRAM = """\
program lifetimes
  use mpi_f08
  use memory
  implicit none
  call MPI_Init()
  call set_up()
  call restore()
  call clear()
  call coupled%open(MPI_COMM_WORLD)
  call coupled%find("one", one)
  call coupled%find("two", two)
{calls}
  call dummies(x, wide(::2), cells%b, table(2, :), n)
  call from_0(from_zero, grid, n)
  call answer_into(cells_y%b)
  call check(all(cells_y%b == 2 * x), "dummies: a component is answered into")
  call coupled%close()
  call MPI_Finalize()
  print "(i0, a, i0, a)", calls, " checks, ", failures, " failures"
contains
{procedures}
  !> Arguments of arguments: what they are copies of lives as long as this procedure.
  subroutine dummies(shaped, section, component, across, m)
    integer, intent(in) :: m
    real(real64), intent(in) :: shaped(:), section(:), component(:), across(m)
    b = section
    call two%submit_tensors([input(shaped), input(section)], [output(y), output(z)], pending)
    call pending%wait()
    call check(all(y == 2 * shaped) .and. all(z == 3 * section), "dummies: shaped, section")
    call two%infer_tensors([input(component), input(across)], [output(y), output(z)])
    call check(all(y == 2 * component) .and. all(z == 3 * across), "dummies: component, across")
  end subroutine dummies

  !> Arrays whose bounds begin at 0, as those with halos do.
  subroutine from_0(shaped, halo, m)
    integer, intent(in) :: m
    real(real64), intent(inout), target :: shaped(0:), halo(0:m - 1, 0:2)
    call one%submit(x, shaped, pending)
    call spoil_stack(100)
    call pending%wait()
    call check(all(shaped == 2 * x), "from 0: shaped")
    call one%submit(reshape(x, [m, 1]), halo(0:, 0:0), pending, row_dims=2)
    call spoil_stack(100)
    call pending%wait()
    call check(all(halo(:, 0) == 2 * x), "from 0: halo")
    call one%submit(spread(x, 2, 3), halo, pending, row_dims=2)
    call spoil_stack(100)
    call pending%wait()
    call check(all(halo == 2 * spread(x, 2, 3)), "from 0: two dimensions")
  end subroutine from_0

  subroutine answer_into(dummy)
    real(real64), intent(inout), target :: dummy(:)
    call one%submit(x, dummy, pending)
    call spoil_stack(100)
    call pending%wait()
  end subroutine answer_into
end program lifetimes
"""

INPUT = """
  subroutine input_{i}()
    a = {e}
    call one%infer({e}, y)
    call check(all(y == 2 * a), "{label}: infer")
    call one%infer({e}, y, 60.0)
    call check(all(y == 2 * a), "{label}: infer, time-out")
    call one%infer({e}, y, 60d0, stats)
    call check(all(y == 2 * a) .and. stats%rows == n, "{label}: infer, stats")
    call two%infer_tensors([input({e}), &
      input({e})], &
      [output(y), output(z)])
    call check(all(y == 2 * a) .and. all(z == 3 * a), "{label}: infer_tensors")
    call two%infer_tensors([input({e}, "b"), &
      input({e}, "a")], &
      [output(y), output(z)], 60.0)
    call check(all(y == 2 * a) .and. all(z == 3 * a), "{label}: infer_tensors, time-out")
    call two%infer_tensors([input({e}), input(x + 1)], &
      [output(y), output(z)], 60d0, stats)
    call check(all(y == 2 * a) .and. all(z == 3 * (x + 1)), "{label}: infer_tensors, stats")
    inputs = [input({e}), &
      input({e})]
    call spoil()
    call two%infer_tensors(inputs, [output(y), output(z)])
    call check(all(y == 2 * a) .and. all(z == 3 * a), "{label}: infer_tensors, later")
    call restore()
    call one%submit({e}, y, pending)
    call spoil()
    call pending%wait()
    call check(all(y == 2 * a), "{label}: submit")
    call restore()
    call one%submit({e}, y, request_options(deadline=60d0), pending)
    call spoil()
    call pending%wait(60.0, stats)
    call check(all(y == 2 * a), "{label}: submit, options")
    call restore()
    call two%submit_tensors([input({e}), &
      input({e})], &
      [output(y), output(z)], pending)
    call spoil()
    call pending%wait(60d0)
    call check(all(y == 2 * a) .and. all(z == 3 * a), "{label}: submit_tensors")
    call restore()
    call two%submit_tensors([input({e}), &
      input({e})], &
      [output(y), output(z)], &
      request_options(priority=1), pending)
    call spoil()
    call pending%wait(60.0)
    call check(all(y == 2 * a) .and. all(z == 3 * a), "{label}: submit_tensors, options")
    call restore()
  end subroutine input_{i}
"""

OUTPUT = """
  subroutine output_{i}()
    call clear()
    call one%infer(x, {e})
    b = {e}
    call check(all(b == 2 * x), "{label}: infer")
    call clear()
    call two%infer_tensors([input(x), input(x)], &
      [output({e}), output(z)])
    b = {e}
    call check(all(b == 2 * x) .and. all(z == 3 * x), "{label}: infer_tensors")
    call clear()
    outputs = [output(z), output({e})]
    call spoil_stack(100)
    call two%infer_tensors([input(x), input(x)], outputs, 60.0, stats)
    b = {e}
    call check(all(b == 3 * x) .and. all(z == 2 * x), "{label}: infer_tensors, later")
    call clear()
    call one%submit(x, {e}, pending)
    call spoil_stack(100)
    call pending%wait()
    b = {e}
    call check(all(b == 2 * x), "{label}: submit")
    call clear()
    call one%submit(x, {e}, request_options(priority=1), pending)
    call spoil_stack(100)
    call pending%wait()
    b = {e}
    call check(all(b == 2 * x), "{label}: submit, options")
    call clear()
    call two%submit_tensors([input(x), input(x)], &
      [output({e}), output(z)], pending)
    call spoil_stack(100)
    call pending%wait()
    b = {e}
    call check(all(b == 2 * x) .and. all(z == 3 * x), "{label}: submit_tensors")
  end subroutine output_{i}
"""

COPY = """
  subroutine copy_{i}()
    call clear()
    call one%infer(x, {e}, 60.0)
    call check(all({e} == 2 * x), "{label}: infer")
    call clear()
    call two%infer_tensors([input(x), input(x)], [output({e}), output(z)], ierr)
    call right_or_refused(all({e} == 2 * x), "{label}: infer_tensors")
    call clear()
    call two%infer_tensors([input(x), input(x)], [output(z), output({e})], 60.0, stats, ierr)
    call right_or_refused(all({e} == 3 * x), "{label}: infer_tensors, stats")
    call clear()
    call one%submit(x, {e}, pending, ierr)
    if (ierr == mpiserve_ok) call pending%wait()
    call right_or_refused(all({e} == 2 * x), "{label}: submit")
    call clear()
    call one%submit(x, {e}, request_options(), pending, ierr)
    if (ierr == mpiserve_ok) call pending%wait()
    call right_or_refused(all({e} == 2 * x), "{label}: submit, options")
    call clear()
    call two%submit_tensors([input(x), input(x)], [output(z), output({e})], pending, ierr)
    if (ierr == mpiserve_ok) call pending%wait()
    call right_or_refused(all({e} == 3 * x), "{label}: submit_tensors")
  end subroutine copy_{i}
"""

# What is no variable cannot take an answer: the compiler says so.
NEVER = ["x + 1", "(x)", "x([1, 3])", "numbers", "made(2)", "[x]", "1.0"]

REFUSED = """\
subroutine sub()
  use mpiserve
  type(service) :: s
  type(request) :: r
  type(tensor) :: t
  real :: x(4)
  real, parameter :: numbers(2) = 1
  {statement}
contains
  function made(n)
    real :: made(n)
    made = 1
  end function made
end subroutine sub
"""


def blocks() -> tuple[str, str]:
    """Return the calls and the procedures of the program."""
    parts = [("input", INPUT, INPUTS), ("output", OUTPUT, OUTPUTS), ("copy", COPY, COPIES)]
    named = [
        (f"{kind}_{i}", template.format(i=i, e=expression, label=f"{kind}, {label}"))
        for kind, template, table in parts
        for i, (label, expression) in enumerate(table.items())
    ]
    return "\n".join(f"  call {name}()" for name, _ in named), "".join(text for _, text in named)


def checks() -> int:
    return 11 * len(INPUTS) + 6 * len(OUTPUTS) + 6 * len(COPIES) + 6


def test_right_values_or_an_error(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(CONFIG)
    calls, procedures = blocks()
    source = tmp_path / "lifetimes.f90"
    text = PROGRAM.format(calls=calls, procedures=procedures)
    source.write_text(f"{MEMORY.read_text()}\n{text}")
    # What the optimizer makes of it with one transport, checks of the compiler with the other.
    rma = os.environ["MPISERVE_TRANSPORT"] == "rma"
    flags = "-O1" if rma else "-fcheck=all,no-array-temps"
    program = compile_fortran(source, "-Wno-surprising", "-Wno-uninitialized", flags)
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == f"{checks()} checks, 0 failures\n"


def test_the_compiler_refuses_outputs_that_are_no_variables(tmp_path):
    mpifort = shutil.which("mpifort", path=f"{sys.prefix}/bin")
    flags = build_flags.fflags().split()
    statements = ["t = output({})", "call s%submit(x, {}, r)", "call s%infer(x, {})"]
    accepted = []
    for statement in ["t = output(x)", "call s%submit(x, x, r)"] + [
        text.format(never) for text in statements for never in NEVER
    ]:
        (tmp_path / "a.f90").write_text(REFUSED.format(statement=statement))
        command = [mpifort, "-std=f2018", "-fsyntax-only", *flags, "a.f90"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        if done.returncode == 0:
            accepted.append(statement)
        assert "internal compiler error" not in done.stderr
    assert accepted == ["t = output(x)", "call s%submit(x, x, r)"]
