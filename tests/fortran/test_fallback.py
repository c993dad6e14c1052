"""A procedure of Fortran answers what the service does not, or a local model does."""

import shutil
from pathlib import Path

from coupling import SERVE, compile_fortran

HERE = Path(__file__).parent

MODEL = """\
def times(x):
    if (x < 0).any():
        raise ValueError("negative")
    return 2 * x
"""

CONFIG = """\
[service.times]
backend = "python"
model = "model:times"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
max_batch_rows = 64
warmup = false
fallback = "local"
"""


def test_a_procedure_answers_what_the_service_does_not(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(CONFIG)
    program = compile_fortran(Path(shutil.copy(HERE / "fallback.f90", tmp_path)))
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == "the physics answered in its turn, and a local model\n"
