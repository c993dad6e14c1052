"""What a Fortran program records is in the capture."""

import shutil
from pathlib import Path

import numpy as np
from coupling import SERVE, compile_fortran

import mpiserve

HERE = Path(__file__).parent

CONFIG = """\
[service.echo]
backend = "echo"
inputs = [{ name = "a", dtype = "float64", shape = [-1, 2] },
          { name = "n", dtype = "int32", shape = [-1] }]
outputs = [{ name = "b", dtype = "float64", shape = [-1, 2] },
           { name = "m", dtype = "int32", shape = [-1] }]
max_batch_rows = 64
[service.single]
backend = "echo"
inputs = [{ name = "x", dtype = "float64", shape = [-1] }]
outputs = [{ name = "y", dtype = "float64", shape = [-1] }]
max_batch_rows = 64
[capture]
"""


def test_pairs_of_a_fortran_program_are_in_the_capture(mpiexec, tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG)
    program = compile_fortran(Path(shutil.copy(HERE / "record.f90", tmp_path)))
    env = {"MPISERVE_CAPTURE": str(tmp_path / "there")}
    done = mpiexec(["-n", 1, program, ":", "-n", 2, *SERVE, "c.toml"], env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all was recorded\n"
    numbers = np.arange(1, 161.0).reshape(40, 4)
    capture = mpiserve.Capture(tmp_path / "there", "echo", "physics")
    inputs, outputs = capture[:]
    assert (inputs["a"] == numbers[:, :2]).all() and (outputs["b"] == numbers[:, 1:3]).all()
    assert (inputs["n"] == np.arange(1, 41)).all() and (outputs["m"] == np.arange(2, 42)).all()
    assert (capture.column("step") == 1).all()
    capture = mpiserve.Capture(tmp_path / "there", "single", "physics")
    inputs, outputs = capture[:]
    assert (inputs["x"] == np.arange(1, 301, 3)).all()
    assert (outputs["y"] == np.arange(2, 202, 2)).all()
    assert (capture.column("step") == 2).all()
