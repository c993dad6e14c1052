"""Threads of a Fortran program: requests of sections while another thread uses the session."""

import shutil
from pathlib import Path

from coupling import SERVE, compile_fortran

HERE = Path(__file__).parent

CONFIG = """\
[service.held]
backend = "python"
model = "model:held"
inputs = [{ name = "x", dtype = "float64", shape = [-1] }]
outputs = [{ name = "y", dtype = "float64", shape = [-1] }]
"""

MODEL = """\
import os
import time


def held(x):
    while x.max() == 3 and not os.path.exists("go"):  # the call on loading is of other values
        time.sleep(0.01)
    return 2 * x
"""


def test_a_busy_session_keeps_the_sections_of_its_requests(mpiexec, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "c.toml").write_text(CONFIG)
    program = compile_fortran(Path(shutil.copy(HERE / "threads.f90", tmp_path)), "-fopenmp")
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.stdout == "every thread got what it should\n"
