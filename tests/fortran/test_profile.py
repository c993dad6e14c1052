"""A Fortran code asks how long its time step waited for the model, and what it did meanwhile."""

import json

from coupling import SERVE, compile_fortran, write

from mpiserve.observe import spans, trace

PROGRAM = """\
program steps
  use mpi_f08
  use mpiserve
  implicit none
  type(session) :: job
  type(service) :: twice
  real(4) :: x(3, 2), y(3, 2)
  integer :: i
  call MPI_Init()
  call job%open(MPI_COMM_WORLD)
  call job%find("twice", twice)
  x = 1
  do i = 1, 20
    call job%step()
    call twice%infer(x, y, 60.0)
  end do
  call job%close()
  call MPI_Finalize()
end program steps
"""


def test_the_answer_is_the_first_line(mpiexec, tmp_path):
    write(tmp_path)
    source = tmp_path / "steps.f90"
    source.write_text(PROGRAM)
    command = ["-n", 2, compile_fortran(source), ":", "-n", 1, *SERVE, "c.toml"]
    done = mpiexec(command, env={"MPISERVE_PROFILE": "summary", "MPISERVE_LOG": "error"})
    assert done.returncode == 0
    assert done.stderr.startswith("mpiserve: a time step waited ")
    first = json.loads((tmp_path / "mpiserve-profile.json").read_text())["answer"]
    assert done.stderr.splitlines()[0] == f"mpiserve: {first}" and "engine" in first
    assert mpiexec(command, env={"MPISERVE_PROFILE": "trace"}).returncode == 0
    traces = trace.read([tmp_path / "mpiserve-profile.parts"])
    assert [len(one.of(spans.REQUEST)) for one in traces] == [20, 20, 0]
