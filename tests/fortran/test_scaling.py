"""A simulation in Fortran starts and stops replicas and a spare, and waits until they are ready."""

import shutil
from pathlib import Path

import pytest
from coupling import SERVE, compile_fortran, lines, write
from launch.test_scaling import SCALED, SEEN

HERE = Path(__file__).parent


@pytest.mark.takes_long
def test_each_rank_sees_what_start_stop_and_scale_do(mpiexec, tmp_path):
    write(tmp_path, config=SCALED)
    program = compile_fortran(Path(shutil.copy(HERE / "scaling.f90", tmp_path)))
    done = mpiexec(["-n", 2, program, ":", "-n", 3, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert lines(done.stdout) == SEEN
