"""One program: `mpiexec -n N python -m mpiserve run CONFIG SCRIPT [ARGS]`."""

from __future__ import annotations

import os
import time

import pytest
from coupling import CONFIG, RUN, lines, right, write

NEVER_OPENS = """\
import sys

print(f"{__name__} got {sys.argv[1:]}", flush=True)
"""

EXITS = """\
import sys

import mpiserve

with mpiserve.open() as session:
    session.service("twice")
    session.comm.barrier()
    sys.exit(7)
"""

# Rank 1 fails in the middle; the others go on asking.
RAISES = """\
import mpiserve
import numpy as np


def step(n):
    if session.comm.rank == 1 and n == 5:
        raise RuntimeError("the flame went out")
    return twice(np.ones((2, 3), np.float32))


with mpiserve.open() as session:
    twice = session.service("twice")
    try:
        for n in range(1_000_000):
            step(n)
    except mpiserve.PeerError as error:
        print(f"rank {session.comm.rank} got {type(error).__name__}: {error}", flush=True)
        raise
"""

# Rank 1 fails, and the others wait for it in a call that only MPI could end.
RAISES_WHILE_OTHERS_WAIT = """\
import mpiserve

with mpiserve.open() as session:
    if session.comm.rank == 1:
        raise RuntimeError("the flame went out")
    session.comm.Barrier()
"""


@pytest.mark.every_mpi
def test_the_last_rank_serves_the_others(mpiexec, tmp_path):
    write(tmp_path)
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0
    assert lines(done.stdout) == right(3)


def test_a_script_that_never_opens_gets_its_arguments(mpiexec, tmp_path):
    write(tmp_path, NEVER_OPENS)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py", "--steps", "3", "-n", "a b"])
    assert done.returncode == 0
    assert lines(done.stdout) == ["__main__ got ['--steps', '3', '-n', 'a b']"] * 2


def test_an_open_timeout_that_is_not_a_number_is_reported(mpiexec, tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setenv("MPISERVE_OPEN_TIMEOUT", "10s")
    result = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], timeout=60)
    # A script's exception is 1, a configuration 2; MPICH's launcher makes one of both.
    assert result.returncode in (1, 2, 3)
    assert "MPISERVE_OPEN_TIMEOUT is to be a number of seconds above 0" in result.stderr


def test_the_exit_status_is_that_of_the_script(mpiexec, tmp_path):
    write(tmp_path, EXITS)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 7
    assert "Traceback" not in done.stderr


@pytest.mark.takes_long
@pytest.mark.every_mpi
def test_a_rank_that_raises_ends_the_others(mpiexec, tmp_path):
    write(tmp_path, RAISES)
    start = time.monotonic()
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"])
    assert done.returncode not in (0, 124)
    assert time.monotonic() - start < 40
    # Its own traceback, from the script on, and once.
    assert done.stderr.count('raise RuntimeError("the flame went out")') == 1
    assert done.stderr.count("Traceback") == 1
    assert "runpy" not in done.stderr
    got = lines(done.stdout)
    assert [line.split(":")[0] for line in got] == ["rank 0 got PeerError", "rank 2 got PeerError"]
    assert all("rank 1" in line and "the flame went out" in line for line in got)


ASKS_FOR_NO_SERVICE = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    if session.comm.rank == 1:
        session.service("nope")
    while True:
        twice(np.ones((2, 3), np.float32))
"""


def test_the_error_of_another_rank_names_the_line_of_the_script(mpiexec, tmp_path):
    write(tmp_path, ASKS_FOR_NO_SERVICE)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"])
    assert done.returncode not in (0, 124)
    (error,) = [line for line in lines(done.stderr) if "rank 0: ended, because" in line]
    assert "rank 1" in error
    assert error.endswith("(sim.py:7)")


def test_ranks_that_wait_for_a_failed_one_are_aborted(mpiexec, tmp_path):
    write(tmp_path, RAISES_WHILE_OTHERS_WAIT)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env={"MPISERVE_GRACE": "1"})
    assert done.returncode not in (0, 124)
    assert "the flame went out" in done.stderr
    assert "did not leave within 1 s (MPISERVE_GRACE)" in done.stderr


BOUND = """\
import os
import mpiserve

with mpiserve.open() as session:
    print(f"cores {sorted(os.sched_getaffinity(0))}")
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out")
def test_inference_ranks_get_cores_of_their_own(mpiexec, tmp_path):
    write(tmp_path, BOUND, "[partition]\nbind = true\n" + CONFIG)
    cores = sorted(os.sched_getaffinity(0))
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 0
    assert f"cores {cores[:-1]}\n" in done.stdout
    assert f"bound to cores {cores[-1]}\n" in done.stderr
