"""A simulation with real(real64) and complex(real64), and models that compute in float32."""

import shutil
from pathlib import Path

import doubles
from coupling import SERVE, compile_fortran, lines

HERE = Path(__file__).parent
COUNTED = """
[service.counted]
backend = "echo"
inputs = [{ name = "x", dtype = "uint32", shape = [-1, 3] }]
max_batch_rows = 3
"""  # less than the request has, which is cut into pieces


def test_doubles_become_floats_on_the_way(mpiexec, tmp_path):
    program = compile_fortran(Path(shutil.copy(HERE / "doubles.f90", tmp_path)))
    (tmp_path / "models.py").write_text(doubles.MODELS)
    (tmp_path / "c.toml").write_text(doubles.CONFIG + COUNTED)
    done = mpiexec(["-n", 1, program, ":", "-n", 2, *SERVE, "c.toml"], timeout=120)
    assert done.returncode == 0
    assert lines(done.stdout) == [doubles.BEYOND, "right"]
