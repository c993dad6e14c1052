"""A service with a local and a remote model: who answers, and what happens when one is slow."""

from __future__ import annotations

import json
import threading
import time

import pytest
from coupling import RUN, lines
from inference_server import Server, hang_up

pytest.importorskip("urllib3")

# It takes as many seconds as a file says.
MODEL = """
import time
def double(x):
    time.sleep(float(open("local_s").read()))
    return 2 * x
"""
TENSORS = """
inputs = [{ name = "x", dtype = "float32", shape = [-1, 2] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 2] }]
rows = "independent"
warmup = [1]
max_batch_rows = 64
"""
REMOTE = """
[service.double.remote]
model = "double"
options = {{ url = "{url}" }}
open_s = 0.1
probe_s = 0.1
"""
LOCAL = 'backend = "python"\nmodel = "model:double"\n'


def start(mpiexec, folder, simulation, config, ranks=3, model=MODEL):
    (folder / "model.py").write_text(model)
    (folder / "c.toml").write_text(config)
    (folder / "sim.py").write_text(simulation)
    (folder / "local_s").write_text("0.01")
    return mpiexec(["-n", ranks, *RUN, "c.toml", "sim.py"], timeout=120, cwd=folder)


def placed(placement, url):
    return f'[service.double]\n{LOCAL}placement = "{placement}"\n{TENSORS}{REMOTE.format(url=url)}'


UNTIL_STOP = """
import numpy as np, mpiserve
from pathlib import Path
with mpiserve.open() as session:
    double, rank, asked, right = session.service("double"), session.comm.rank, 0, 0
    while not Path("stop").exists():
        x = np.random.rand(1 + 7 * asked % 50, 2).astype(np.float32)
        right += np.array_equal(double(x), 2 * x)
        asked += 1
    print(f"rank {rank}: {asked - right} wrong")
"""


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def stop_when_seen(server, folder, number):
    """Have the simulation stop when the server has got so many requests."""

    def watch():
        until(lambda: server.seen >= number)
        (folder / "stop").touch()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "placement",
    ["remote", *(pytest.param(name, marks=pytest.mark.takes_long) for name in ("auto", "split"))],
)
def test_no_request_is_lost_when_the_remote_model_fails(mpiexec, tmp_path, placement):
    with Server() as server:
        server.faults = [*[lambda _: False] * 10, *[hang_up] * 16]
        thread = stop_when_seen(server, tmp_path, 48)
        done = start(mpiexec, tmp_path, UNTIL_STOP, placed(placement, server.url))
        thread.join()
        assert server.seen >= 48
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == ["rank 0: 0 wrong", "rank 1: 0 wrong"]
    assert "the remote model does not answer, the local one does" in done.stderr
    assert "the remote model answers again" in done.stderr


def refuse(handler):
    handler.reply(400, {"error": "not this one"})
    return True


@pytest.mark.takes_long
def test_a_remote_model_that_refuses_each_request_is_named_and_left(mpiexec, tmp_path):
    with Server() as server:
        server.faults = [refuse] * 1000
        thread = stop_when_seen(server, tmp_path, 8)
        done = start(mpiexec, tmp_path, UNTIL_STOP, placed("remote", server.url), ranks=2)
        thread.join()
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == ["rank 0: 0 wrong"]
    assert "the local one does: http" in done.stderr and "not this one" in done.stderr
    assert "breaker opened 0 times" not in done.stderr


# It takes a while to start again.
MORTAL = """
import os, time
time.sleep(1)
def double(x):
    if x[0, 0] == 7:
        os._exit(3)
    return 2 * x
"""
AFTER_A_DEATH = """
import numpy as np, mpiserve
with mpiserve.open() as session:
    double, x = session.service("double"), np.ones((1, 2), np.float32)
    assert (double(x) == 2 * x).all()
    try:
        double(7 * x)
    except mpiserve.ModelError:
        print("died")
    print((double(x) == 2 * x).all())
"""


@pytest.mark.takes_long
def test_requests_wait_for_the_only_model_when_the_remote_one_is_away(mpiexec, tmp_path):
    with Server() as server:
        url = server.url
    done = start(mpiexec, tmp_path, AFTER_A_DEATH, placed("remote", url), ranks=2, model=MORTAL)
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == ["True", "died"]


def test_a_remote_model_that_comes_later_is_taken_up(mpiexec, tmp_path):
    with Server() as server:
        server.ready_at = float("inf")

        def come():
            until((tmp_path / "asked").exists)
            server.ready_at = 0.0

        threads = [threading.Thread(target=come), stop_when_seen(server, tmp_path, 5)]
        threads[0].start()
        simulation = UNTIL_STOP.replace("asked += 1", "asked += 1; Path('asked').touch()")
        done = start(mpiexec, tmp_path, simulation, placed("remote", server.url), ranks=2)
        for thread in threads:
            thread.join()
        assert server.seen >= 5
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == ["rank 0: 0 wrong"]
    assert "no such model" in done.stderr
    assert "the remote model answers again" in done.stderr


# In the test below the local model is another one, so that the client sees who answers. Each phase
# plants what the models take, with four requests under way, and ends once one side has given nearly
# all of 20 answers in a row. Then it prints what other programs see, and rates, of which nothing is
# demanded: of the service that chooses, and of services with one of its models each.
PHASES = """
import json, time
from collections import Counter, deque
import numpy as np, mpiserve
from mpiserve.tools import metrics
from pathlib import Path

x = np.ones((8, 2), np.float32)

def answers(service):
    under_way = deque(service.submit(x) for _ in range(4))
    while True:
        value = float(under_way.popleft().result()[0, 0])
        yield {2.0: "remote", 3.0: "local"}[value]
        under_way.append(service.submit(x))

def follow(service, side):
    begin, last = time.monotonic(), deque(maxlen=20)
    for one in answers(service):
        last.append(one)
        if Counter(last)[side] >= 17:
            return time.monotonic() - begin
        if time.monotonic() - begin > 60:
            return None

def rate(service, seconds=2.0):
    begin = time.monotonic()
    for done, _ in enumerate(answers(service)):
        if time.monotonic() - begin > seconds:
            return done / (time.monotonic() - begin)

with mpiserve.open() as session:
    double, here, there = map(session.service, ("double", "here", "there"))
    for side in ("local", "remote", "local"):
        local_s, remote_s = (0.02, 0.3) if side == "local" else (0.3, 0.02)
        Path("local_s").write_text(str(local_s))
        Path("remote_s").write_text(str(remote_s))
        followed = follow(double, side)
        placed = session.info()["placement"]["double"][0]
        print(json.dumps([side, followed, placed, *map(rate, (double, here, there))]), flush=True)
    metrics.once(session.run)
"""


@pytest.mark.takes_long
@pytest.mark.timeout(300)
def test_auto_follows_the_better_model(mpiexec, tmp_path):
    file = tmp_path / "remote_s"
    file.write_text("0.3")

    def slow(handler):
        time.sleep(float(file.read_text() or 0))
        return False

    with Server() as server:
        server.faults = [slow] * 100_000
        config = placed("auto", server.url)
        config += f"[service.here]\n{LOCAL}{TENSORS}"
        config += f'[service.there]\nbackend = "remote"\nmodel = "double"\n{TENSORS}'
        config += f'options = {{ url = "{server.url}" }}\n'
        done = start(mpiexec, tmp_path, PHASES, config, ranks=4, model=MODEL.replace("2 *", "3 *"))
    assert done.returncode == 0, done.stderr
    phases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(phases) == 3
    for side, followed, seen, chosen, here, there in phases:
        assert followed is not None and seen["side"] == side, phases
        share = chosen / max(here, there)
        print(f"{side} after {followed:.2f} s; {chosen:.1f} requests/s, {share:.0%} of the best")
    assert phases[-1][2]["changes"] >= 2 and phases[-1][2]["remote_rows"] > 0
    assert "mpiserve_placement{" in done.stdout and 'model="local"} 1' in done.stdout
