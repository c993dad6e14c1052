"""Another version of a model, asked for in Fortran."""

import shutil
from pathlib import Path

from coupling import SERVE, compile_fortran

HERE = Path(__file__).parent

MODEL = """\
class Times:
    def __init__(self, factor):
        self.factor = float(int(factor))

    def __call__(self, x):
        return self.factor * x
"""

CONFIG = """\
[service.times]
backend = "python"
model = "model:Times"
options = { factor = "{version}" }
version = "2"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
max_batch_rows = 64
"""


def test_a_model_is_reloaded_and_unloaded(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(CONFIG)
    program = compile_fortran(Path(shutil.copy(HERE / "reload.f90", tmp_path)))
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == "every version answered in its turn\n"
