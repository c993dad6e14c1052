"""A job ends although a model without a time-out never does: nobody wants its answer any more."""

from __future__ import annotations

import pytest
from coupling import CONFIG, RUN, write

HANGS = """\
import time


def twice(x):
    if (x == 13).any():
        time.sleep(1000)
    return 2 * x
"""
BEGIN = """\
import time

import mpiserve
import numpy as np

session = mpiserve.open()
twice, rank = session.service("twice"), session.comm.rank
x = np.full((2, 3), 13, np.float32)
assert (twice(x + rank + 1, timeout=30) == 28 + 2 * rank).all()
session.comm.Barrier()
"""
LEAVES = (
    BEGIN
    + """\
requests = [twice.submit(x + rank * i) for i in range(N)]
try:
    requests[0].result(timeout=0.5)
except mpiserve.RequestTimeout:
    print(f"rank {rank} waits no longer", flush=True)
try:
    session.close(timeout=0.5)
except mpiserve.RequestTimeout as error:
    print(f"rank {rank} goes on: {error}", flush=True)
"""
)
FAILS = (
    BEGIN
    + """\
if rank == 0:
    try:
        twice(x)
    except mpiserve.Error as error:
        print(f"rank {rank} got {type(error).__name__}", flush=True)
        raise
time.sleep(1)
raise RuntimeError("too hot")
"""
)
KILLED = "was killed on this batch: every simulation rank has left, or one has failed"


def start(mpiexec, tmp_path, simulation, **env):
    write(tmp_path, simulation, CONFIG + 'rows = "independent"\nmax_delay_us = 1000\n')
    (tmp_path / "model.py").write_text(HANGS)
    return mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env=env, timeout=60)


# With 4 requests, or 6, no slot is free for a word of goodbye.
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.takes_long), 6])
def test_all_leave_a_model_that_hangs(mpiexec, tmp_path, n):
    done = start(mpiexec, tmp_path, LEAVES.replace("N)", f"{n})"))
    assert done.returncode == 0
    for rank in range(2):
        assert f"rank {rank} goes on: " in done.stdout
    assert done.stderr.count(KILLED) >= 1


@pytest.mark.takes_long
def test_a_rank_fails_beside_a_model_that_hangs(mpiexec, tmp_path):
    done = start(mpiexec, tmp_path, FAILS, MPISERVE_GRACE="1")
    assert done.returncode not in (0, 124)
    assert "RuntimeError: too hot" in done.stderr
    assert "rank 0 got " in done.stdout
    assert KILLED in done.stderr


# The third load, of a process that is started again beside another replica, never ends.
LOADS = """\
import os
import time


class Twice:
    def __init__(self):
        with open("loads", "a") as file:
            file.write("x")
        if os.path.getsize("loads") > 2:
            time.sleep(1000)

    def __call__(self, x):
        if (x == 13).any():
            os._exit(7)
        return 2 * x
"""
ASKS = """\
import os
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, x = session.service("twice"), np.ones((2, 3), np.float32)
    try:
        twice(13 * x, timeout=30)
    except mpiserve.ModelError as error:
        print(error, flush=True)
    end = time.monotonic() + 20
    while os.path.getsize("loads") < 3 and time.monotonic() < end:
        assert (twice(x, timeout=30) == 2).all()
print("closed", flush=True)
"""


@pytest.mark.takes_long
def test_all_leave_while_a_process_is_started_again_and_never_ready(mpiexec, tmp_path):
    write(tmp_path, ASKS, CONFIG.replace("model:twice", "model:Twice") + "replicas = 2\n")
    (tmp_path / "model.py").write_text(LOADS)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=60)
    assert done.returncode == 0
    assert "has ended with status 7 on this batch" in done.stdout
    assert "closed" in done.stdout
    assert (tmp_path / "loads").read_text() == "xxx"
