"""A service that keeps answers, and ranks in Fortran that ask for equal rows."""

import shutil
from pathlib import Path

from coupling import CONFIG, SERVE, compile_fortran, lines, write

HERE = Path(__file__).parent

KEEPS = CONFIG + "cache_rows = 1000\n"
NEARLY = KEEPS.replace("service.twice", "service.nearly") + "cache_step = 0.25\n"


def test_what_one_rank_has_asked_for_is_kept_for_the_other(mpiexec, tmp_path):
    write(tmp_path, config=KEEPS + NEARLY)
    program = compile_fortran(Path(shutil.copy(HERE / "cached.f90", tmp_path)))
    done = mpiexec(["-n", 2, program, ":", "-n", 2, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert lines(done.stdout) == ["rank 0 is right", "rank 1 is right"]
    kept, near = 60 + 60 + 54 + 60, 60
    assert f"{kept} of {1 + 60 + 60 + 60 + 60 + 60} rows" in done.stderr
    assert f"{near} of {1 + 60 + 60 + 60} rows" in done.stderr
