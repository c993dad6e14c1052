"""Inference ranks are stopped, and go on later: their requests take another way meanwhile."""

from __future__ import annotations

import os

import pytest
from coupling import CONFIG, RUN, write
from launch.test_deaths import PIDS, TRANSPORTS

REPLICAS = CONFIG + 'replicas = 2\nrows = "independent"\nstickiness = 1\n'
BEGIN = """\
import os
import signal
import time

import mpiserve
import numpy as np


def send(rank, number):
    os.kill(int(open(f"pid.{rank}").read()), number)


def stop(rank):
    send(rank, signal.SIGSTOP)


def go_on(rank):
    send(rank, signal.SIGCONT)


"""

# Small requests lie in slots, large ones in leased rows, and some in memory of the head.
TWO = (
    BEGIN
    + """\
with mpiserve.open() as session:
    twice = session.service("twice")
    rank, here = session.comm.rank, None

    def ask(step):
        global here
        if step % 10 == 0:
            here = twice.empty_input(60)
        inputs = [np.empty((2, 3), np.float32), np.empty((60, 3), np.float32), here]
        for i, x in enumerate(inputs):
            x[:] = 100 * step + 10 * i + rank
        requests = [twice.submit(x) for x in inputs]
        for i, request in enumerate(requests):
            assert (request.result(timeout=30) == 200 * step + 20 * i + 2 * rank).all()

    def ask_until(state):
        global step
        end = time.monotonic() + 20
        while twice.states()[1].state not in state and time.monotonic() < end:
            ask(step := step + 1)
        assert twice.states()[1].state in state

    for step in range(30):
        if step == 25 and rank == 1:
            stop(3)
        ask(step)
    if rank == 1:
        ask_until(["suspended"])
        for step in range(step, step + 20):
            ask(step)
        go_on(3)
    ask_until(["ready", "busy"])
    for step in range(step, step + 20):
        ask(step)
    print(f"rank {rank} is right; rerouted {session.info()['counters']['rerouted']}", flush=True)
print(f"rank {rank} has left", flush=True)
"""
)


SPARE = (
    BEGIN
    + """\
with mpiserve.open() as session:
    twice = session.service("twice")

    def ask(number):
        assert (twice(np.full((2, 3), number, np.float32), timeout=30) == 2 * number).all()

    def states():
        return [state.state.replace("busy", "ready") for state in twice.states()]

    ask(1)
    assert states() == ["ready", "launched"]
    stop(1)
    for number in range(2, 20):
        ask(number)
    assert states() == ["suspended", "ready"]
    go_on(1)
    end = time.monotonic() + 20
    while states() != ["ready", "ready"] and time.monotonic() < end:
        ask(20)
    assert states() == ["ready", "ready"]
    print("all is right", flush=True)
"""
)


@pytest.fixture
def env(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PIDS)
    return {"PYTHONPATH": str(tmp_path), "MPISERVE_STOPPED_TIMEOUT": "0.5"}


def test_a_spare_takes_the_place_of_a_replica_that_is_stopped(mpiexec, tmp_path, env):
    write(tmp_path, SPARE, CONFIG + "[partition]\nspares = 1\n")
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env=env)
    assert done.returncode == 0
    assert "all is right" in done.stdout
    assert "takes the place of rank 1" in done.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_other_replica_answers_while_one_is_stopped(mpiexec, tmp_path, env, transport):
    write(tmp_path, TWO, REPLICAS)
    env |= {"MPISERVE_TRANSPORT": transport}
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], env=env)
    assert done.returncode == 0
    assert done.stdout.count("is right") == 2
    assert done.stdout.count("has left") == 2
    assert "rank 1 is right; rerouted 0" not in done.stdout


ONE = (
    BEGIN
    + """session = mpiserve.open()
twice = session.service("twice")
x, rank = np.ones((60, 3), np.float32), session.comm.rank
assert (twice(x) == 2).all()
session.comm.Barrier()
if rank == 0:
    stop(2)
for i in range(2):
    try:
        while (twice(x, timeout=30) == 2).all():
            pass
    except mpiserve.PeerError as error:
        print(error, flush=True)
twice.fallback(lambda x: x + 40)
begin = time.monotonic()
for i in range(10):
    request = twice.submit(x)
    assert (request.result(timeout=30) == 41).all()
    assert request.stats["source"] == "fallback"
session.comm.Barrier()
if rank == 0:
    go_on(2)
end = time.monotonic() + 20
while (y := twice(x))[0, 0] == 41 and time.monotonic() < end:
    assert (y == 41).all()
    time.sleep(0.01)
for i in range(10):
    assert (twice(i * x) == 2 * i).all()
session.close()
print("closed", flush=True)
"""
)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_only_replica_is_stopped_and_the_fallback_answers(mpiexec, tmp_path, env, transport):
    write(tmp_path, ONE)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env=env | {"MPISERVE_TRANSPORT": transport})
    assert done.returncode == 0
    pid = (tmp_path / "pid.2").read_text()
    who = f"service 'twice': inference rank 2 (pid {pid} on host {os.uname().nodename})"
    assert done.stdout.count(f"{who} has been stopped by a signal for ") == 4
    assert done.stdout.count("and no other replica lives") == 4
    assert done.stdout.count("closed") == 2


# What the head may still write, nobody else writes: neither the other replica, nor a fallback.
BUFFERS = (
    BEGIN
    + """with mpiserve.open() as session:
    twice = session.service("twice")
    x, out, other = np.ones((60, 3), np.float32), twice.empty_output(60), twice.empty_output(60)
    twice.fallback(lambda x: x + 40)
    assert (twice(x, out=out) == 2).all()
    stop(1)
    request = twice.submit(3 * x, out=out)
    for ask in (lambda: request.result(timeout=30), lambda: twice(x, out=out)):
        try:
            ask()
        except mpiserve.PeerError as error:
            print(error, flush=True)
    assert (out == 2).all()
    assert (twice(x, out=other) == 41).all()
    go_on(1)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            result = twice(5 * x, out=out)
        except mpiserve.PeerError:
            continue
        if result[0, 0] == 10:
            break
    assert (out == 10).all()
    print("right", flush=True)
"""
)


def test_no_other_answer_is_put_where_the_stopped_rank_may_still_write(mpiexec, tmp_path, env):
    write(tmp_path, BUFFERS)
    env |= {"MPISERVE_TRANSPORT": "shared"}
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], env=env)
    assert done.returncode == 0
    assert "may still write the outputs, which are rows of its buffer" in done.stdout
    assert "may still write: take another one" in done.stdout
    assert "right" in done.stdout
