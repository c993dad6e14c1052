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


def start(mpiexec, folder, simulation, config, ranks=3):
    (folder / "model.py").write_text(MODEL)
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


@pytest.mark.parametrize("placement", ["remote", "auto", "split"])
def test_no_request_is_lost_when_the_remote_model_fails(mpiexec, tmp_path, placement):
    with Server() as server:
        server.faults = [*[lambda _: False] * 10, *[hang_up] * 8]
        thread = stop_when_seen(server, tmp_path, 40)
        done = start(mpiexec, tmp_path, UNTIL_STOP, placed(placement, server.url))
        thread.join()
        assert server.seen >= 40
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == ["rank 0: 0 wrong", "rank 1: 0 wrong"]
    assert "the remote model does not answer, the local one does" in done.stderr
    assert "the remote model answers again" in done.stderr


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


# Each phase plants what the models take. After a second, requests, one after the other, are
# counted: at the service that chooses, and at services with one of its models each.
PHASES = """
import json, time
import numpy as np, mpiserve
from pathlib import Path

def rate(service, seconds):
    x, done, end = np.ones((8, 2), np.float32), 0, time.monotonic() + seconds
    begin = time.monotonic()
    while time.monotonic() < end:
        assert np.array_equal(service(x), 2 * x)
        done += 1
    return done / (time.monotonic() - begin)

with mpiserve.open() as session:
    double, here, there = map(session.service, ("double", "here", "there"))
    for local_s, remote_s in ((0.03, 0.15), (0.15, 0.03), (0.03, 0.15), (0.03, 0.6)):
        Path("local_s").write_text(str(local_s))
        Path("remote_s").write_text(str(remote_s))
        rate(double, 1.0)
        rates = rate(double, 3.0), rate(here, 1.5), rate(there, 1.5)
        print(json.dumps(rates), flush=True)
"""


@pytest.mark.takes_long
@pytest.mark.timeout(150)
def test_auto_follows_the_better_model(mpiexec, tmp_path):
    file = tmp_path / "remote_s"
    file.write_text("0.15")

    def slow(handler):
        time.sleep(float(file.read_text() or 0))
        return False

    with Server() as server:
        server.faults = [slow] * 100_000
        config = placed("auto", server.url)
        config += f"[service.here]\n{LOCAL}{TENSORS}"
        config += f'[service.there]\nbackend = "remote"\nmodel = "double"\n{TENSORS}'
        config += f'options = {{ url = "{server.url}" }}\n'
        done = start(mpiexec, tmp_path, PHASES, config, ranks=4)
    assert done.returncode == 0, done.stderr
    phases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(phases) == 4
    for chosen, here, there in phases:
        assert chosen >= 0.9 * max(here, there), phases
