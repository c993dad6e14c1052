"""Wrong use from Fortran: the documented code and text, never a crash."""

import shutil
from pathlib import Path

from coupling import SERVE, compile_fortran, write

HERE = Path(__file__).parent


def test_wrong_use(mpiexec, tmp_path):
    write(tmp_path)
    program = compile_fortran(Path(shutil.copy(HERE / "wrong_use.f90", tmp_path)))
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout == "every error is what it should be\n"
