"""A simulation in C starts and stops replicas and a spare, and waits until they are ready."""

import shutil
from pathlib import Path

from coupling import CONFIG, SERVE, compile_simulation, lines, write

SCALED = CONFIG + 'replicas = 2\nrows = "independent"\n[partition]\nspares = 1\n'
SEEN = ["rank 0 saw what each change did", "rank 1 saw what each change did"]


def test_each_rank_sees_what_start_stop_and_scale_do(mpiexec, tmp_path):
    write(tmp_path, config=SCALED)
    source = Path(__file__).with_name("scaling.c")
    program = compile_simulation(Path(shutil.copy(source, tmp_path)))
    done = mpiexec(["-n", 2, program, ":", "-n", 3, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert lines(done.stdout) == SEEN
