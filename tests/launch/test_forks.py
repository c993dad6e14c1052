"""Forked children that end as programs do: nobody but their parent learns of it."""

import sys

import pytest
from coupling import RUN, SERVE, said_by_ranks, write

CHILDREN = """\
import os
import sys
import time

if "mpi4py" in sys.argv:
    import mpi4py.MPI
import mpiserve
import numpy as np


def child(act):
    pid = os.fork()
    if not pid:
        act()
        return "not reached"
    for _ in range(1000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"


def leave():
    raise SystemExit(6)


if child(lambda: sys.exit(2)) != 2:
    sys.exit("before the session")
with mpiserve.open() as session:
    twice = session.service("twice")
    x = np.ones((1, 3), np.float32)
    assert (twice(x) == 2).all()
    ends = [child(end) for end in (sys.exit, lambda: sys.exit(3), lambda: 1 / 0, leave)]
    assert (twice(x, timeout=20) == 2).all()
ends.append(child(lambda: sys.exit(5)))
os.write(1, f"{ends}\\n".encode())
"""

ENDS = "[0, 3, 1, 6, 5]"

MODEL = """\
import multiprocessing
import os
import sys
import threading

import mpiserve.session


def square(k):
    return k * k


def status(act):
    pid = os.fork()
    if not pid:
        act()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else None


def in_pool():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(square, range(4)))


def in_thread():
    left = []
    thread = threading.Thread(target=lambda: left.append(mpiserve.session.latest().peer_error()[1]))
    thread.start()
    thread.join()
    return left[0]


def twice(x):
    case = x.flat[0]
    acts = {1: in_pool, 2: lambda: status(lambda: sys.exit(7)), 3: lambda: status(lambda: 1 / 0)}
    acts |= {4: lambda: status(int), 5: in_thread}
    answer = acts[case]() if case in acts else 0
    return x if answer is None else 0 * x + answer
"""

ASK = """\
import os

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    answers = [float(twice(np.full((1, 3), k, np.float32), timeout=20)[0, 0]) for k in range(1, 6)]
    assert (twice(np.zeros((1, 3), np.float32)) == 0).all()
os.write(1, f"{answers}\\n".encode())
"""


def test_children_of_a_script_under_run(mpiexec, tmp_path):
    write(tmp_path, CHILDREN)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=60, cwd=tmp_path)
    assert done.returncode == 0
    assert said_by_ranks(done) == [ENDS] * 2
    assert "failed" not in done.stderr.replace(", 0 failed", "")


@pytest.mark.takes_long
def test_children_of_a_program_beside_serve(mpiexec, tmp_path):
    write(tmp_path, CHILDREN)
    job = ["-n", 2, sys.executable, "sim.py", ":", "-n", 1, *SERVE, "c.toml"]
    done = mpiexec(job, timeout=60, cwd=tmp_path)
    assert done.returncode == 0
    assert said_by_ranks(done) == [ENDS] * 2


def test_children_and_threads_of_a_model(mpiexec, tmp_path):
    write(tmp_path, ASK)
    (tmp_path / "model.py").write_text(MODEL)
    with (tmp_path / "c.toml").open("a") as file:
        file.write("warmup = false\nisolate = false\n")  # so that the model sees the session
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], timeout=60, cwd=tmp_path)
    assert done.returncode == 0
    assert said_by_ranks(done) == ["[14.0, 7.0, 1.0, 1.0, 1.0]"]
    assert "aborting" not in done.stderr
