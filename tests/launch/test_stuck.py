"""A model stops its inference rank, or gets stuck in the kernel with it, while a batch runs."""

from __future__ import annotations

import pytest
from coupling import CONFIG, RUN, first_is_quick, write
from launch.test_deaths import PIDS

# The first batch with a 13 that any rank computes. posix_spawn waits in the kernel, where no signal
# ends it, until its child has opened the file: until somebody writes to it.
MODEL = """\
import os
import signal


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def get_stuck():
    os.mkfifo("fifo")
    opened = [(os.POSIX_SPAWN_OPEN, 0, "fifo", os.O_RDONLY, 0)]
    os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ, file_actions=opened), 0)


def twice(x):
    if (x == 13).any():
        try:
            os.close(os.open("first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return 2 * x
        with open("who.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename("who.new", "who")
        HARM()
    return 2 * x
"""
BEGIN = """\
import os
import signal
import time

import mpiserve
import numpy as np

X = np.ones((2, 3), np.float32)


def free():
    if os.path.exists("fifo"):
        os.close(os.open("fifo", os.O_WRONLY))
    os.kill(int(open("who").read()), signal.SIGCONT)


def until(reached):
    end = time.monotonic() + 30
    while not reached() and time.monotonic() < end:
        time.sleep(0.01)
    assert reached()


"""
# The request itself goes to the other replica, and so do those behind it.
OTHER = (
    BEGIN
    + """\
with mpiserve.open() as session:
    twice = session.service("twice")
    states = lambda: sorted(state.state.replace("busy", "ready") for state in twice.states())
    for i in range(10):
        assert (twice(i * X) == 2 * i).all()
    requests = [twice.submit(13 * X), *(twice.submit(i * X) for i in range(20, 26))]
    results = [request.result(timeout=30)[0, 0] for request in requests]
    assert results == [26, *(2 * i for i in range(20, 26))], results
    assert session.info()["counters"]["rerouted"] > 0
    assert states() == ["ready", "suspended"], states()
    free()
    for i in range(10):
        assert (twice(i * X) == 2 * i).all()
    until(lambda: (twice(X) == 2).all() and states() == ["ready", "ready"])
    print("all is right", flush=True)
"""
)
# No other replica: requests leave it when their time is over, long before it counts as stopped.
ALONE = (
    BEGIN
    + """\
with mpiserve.open() as session:
    twice = session.service("twice")
    twice.fallback(lambda x: x + 40)
    for i in range(10):
        assert (twice(i * X) == 2 * i).all()
    assert (twice(13 * X, timeout=0.3) == 53).all()
    assert os.path.exists("who")
    for i in range(3):
        assert (twice(i * X, timeout=0.3) == i + 40).all()
    request = twice.submit(X, deadline=0.3)
    assert (request.result(timeout=30) == 41).all() and request.stats["source"] == "fallback"
    free()
    until(lambda: (twice(3 * X, timeout=1) == 6).all())
    print("all is right", flush=True)
"""
)


def run(mpiexec, tmp_path, harm, simulation, config, limit):
    write(tmp_path, simulation, CONFIG + "isolate = false\n" + config)
    (tmp_path / "model.py").write_text(MODEL.replace("HARM", harm))
    (tmp_path / "sitecustomize.py").write_text(PIDS)
    env = {"PYTHONPATH": str(tmp_path), "MPISERVE_STOPPED_TIMEOUT": limit}
    env["MPISERVE_TRANSPORT"] = "shared"
    done = mpiexec(["-n", 3 if "replicas" in config else 2, *RUN, "c.toml", "sim.py"], env=env)
    assert done.returncode == 0
    assert "all is right" in done.stdout


@pytest.mark.parametrize("harm", first_is_quick(["stop", "get_stuck"]))
def test_the_other_replica_answers(mpiexec, tmp_path, harm):
    config = 'replicas = 2\nrows = "independent"\nstickiness = 1\n'
    run(mpiexec, tmp_path, harm, OTHER, config, "0.5")


def test_requests_leave_the_only_replica_when_their_time_is_over(mpiexec, tmp_path):
    run(mpiexec, tmp_path, "get_stuck", ALONE, "", "60")
