"""Time steps of a Fortran program."""

import shutil
from pathlib import Path

from coupling import SERVE, compile_fortran

HERE = Path(__file__).parent

CONFIG = """\
[service.both]
backend = "echo"
inputs = [{ name = "a", dtype = "float64", shape = [-1, 2] },
          { name = "n", dtype = "int32", shape = [-1] }]
outputs = [{ name = "b", dtype = "float64", shape = [-1, 2] },
           { name = "m", dtype = "int32", shape = [-1] }]
[service.single]
backend = "echo"
inputs = [{ name = "x", dtype = "float64", shape = [-1] }]
outputs = [{ name = "y", dtype = "float64", shape = [-1] }]
"""


def test_steps_of_a_fortran_program_get_answers_of_steps_before(mpiexec, tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG)
    program = compile_fortran(Path(shutil.copy(HERE / "paces.f90", tmp_path)))
    done = mpiexec(["-n", 1, program, ":", "-n", 2, *SERVE, "c.toml"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all steps were right\n"
