"""The backend "remote" in a job: the model is at a server, which may go and come back."""

from __future__ import annotations

import threading
import time

import pytest
from coupling import RUN, lines, write
from inference_server import Server, meet

pytest.importorskip("urllib3")

CONFIG = """
[service.double]
backend = "remote"
model = "double"
options = {{ url = "{url}" }}
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 2] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 2] }}]
"""
MANY = """
import numpy as np, mpiserve
with mpiserve.open() as session:
    double, rank = session.service("double"), session.comm.rank
    right = 0
    for i in range(90):
        x = np.full((1 + i % 5, 2), 1000 * rank + i, np.float32)
        right += np.array_equal(double(x), 2 * x)
    print(f"rank {rank}: {right} right")
"""
AT_ONCE = """
import numpy as np, mpiserve
with mpiserve.open() as session:
    double, rank = session.service("double"), session.comm.rank
    given = [np.full((1, 2), 10 * rank + i, np.float32) for i in range(4)]
    requests = [double.submit(x) for x in given]
    right = sum(np.array_equal(r.result(), 2 * x) for r, x in zip(requests, given))
    print(f"rank {rank}: {right} right")
"""


def start(mpiexec, folder, url, simulation, ranks, timeout=60):
    write(folder, simulation, CONFIG.format(url=url))
    return mpiexec(["-n", ranks, *RUN, "c.toml", "sim.py"], timeout=timeout)


@pytest.mark.takes_long
def test_a_server_that_is_restarted_loses_no_request(mpiexec, tmp_path):
    with Server() as first:
        address, url = first.server_address, first.url
        ended, restarts = threading.Event(), []

        def restart():
            server = first
            while not ended.is_set() and len(restarts) < 3:
                if server.seen < 25:
                    time.sleep(0.01)
                    continue
                server.__exit__()
                time.sleep(0.3)
                server = Server(address).__enter__()
                restarts.append(server)

        thread = threading.Thread(target=restart)
        thread.start()
        try:
            done = start(mpiexec, tmp_path, url, MANY, 3)
        finally:
            ended.set()
            thread.join()
            for server in restarts[-1:]:
                server.__exit__()
    assert done.returncode == 0
    assert lines(done.stdout) == ["rank 0: 90 right", "rank 1: 90 right"]
    assert len(restarts) == 3


def test_requests_of_a_slow_server_are_under_way_together(mpiexec, tmp_path):
    with Server() as server:
        server.faults = [lambda handler: False, *[meet(15)] * 16]  # the first is warm-up
        done = start(mpiexec, tmp_path, server.url, AT_ONCE, 5)
    assert done.returncode == 0
    assert lines(done.stdout) == [f"rank {rank}: 4 right" for rank in range(4)]
    assert server.most >= 15
