"""A Fortran program learns which rows are not trusted, and a procedure of it answers them."""

import shutil
from pathlib import Path

from coupling import SERVE, compile_fortran
from launch.test_trust import CONFIG, DOUBTFUL

HERE = Path(__file__).parent


def test_a_procedure_answers_the_rows_that_are_not_trusted(mpiexec, tmp_path):
    (tmp_path / "doubtful.py").write_text(DOUBTFUL)
    (tmp_path / "c.toml").write_text(CONFIG.replace("[capture]\n", ""))
    program = compile_fortran(Path(shutil.copy(HERE / "trust.f90", tmp_path)))
    done = mpiexec(["-n", 1, program, ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the physics answered what was not trusted\n"
