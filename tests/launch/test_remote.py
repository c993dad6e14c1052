"""The backend "remote" in a job: the model is at a server, which may go and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from coupling import RUN, lines, write
from inference_server import Server, take
from jobs import ROOT

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
    for i in range(150):
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
TRITON = ROOT / ".venv-triton/bin/python"
TRITON_SERVER = """
import sys
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

@batch
def double(x):
    return [2 * x]

ports = dict(zip(("http_port", "grpc_port", "metrics_port"), map(int, sys.argv[1:])))
with Triton(config=TritonConfig(**ports)) as triton:
    x, y = (Tensor(name=name, dtype=np.float32, shape=(2,)) for name in "xy")
    triton.bind("double", double, inputs=[x], outputs=[y], config=ModelConfig(max_batch_size=64))
    triton.serve()
"""


def start(mpiexec, folder, url, simulation, ranks, timeout=60):
    write(folder, simulation, CONFIG.format(url=url))
    return mpiexec(["-n", ranks, *RUN, "c.toml", "sim.py"], timeout=timeout)


def test_a_server_that_is_restarted_loses_no_request(mpiexec, tmp_path):
    with Server() as first:
        address, url = first.server_address, first.url
        ended, restarts = threading.Event(), []

        def restart():
            server = first
            while not ended.is_set() and len(restarts) < 3:
                if server.seen < 40:
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
    assert lines(done.stdout) == ["rank 0: 150 right", "rank 1: 150 right"]
    assert len(restarts) == 3


def test_requests_of_a_slow_server_are_under_way_together(mpiexec, tmp_path):
    with Server() as server:
        server.faults = [lambda handler: False, *[take(1.0)] * 16]  # the first is warm-up
        done = start(mpiexec, tmp_path, server.url, AT_ONCE, 5)
    assert done.returncode == 0
    assert lines(done.stdout) == [f"rank {rank}: 4 right" for rank in range(4)]
    assert server.most >= 15


class Triton:
    """The real server, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "triton.py").write_text(TRITON_SERVER)
        self.ports = free_ports(3)
        self.url = f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        # It looks for the library of its Python, which may be in no folder that is searched.
        folder = subprocess.check_output(
            [TRITON, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"], text=True
        )
        self.process = subprocess.Popen(
            [TRITON, "triton.py", *map(str, self.ports)],
            cwd=self.folder,
            env=os.environ | {"LD_LIBRARY_PATH": folder.strip()},
            stdout=(self.folder / "triton.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_ports(n):
    made = [Server() for _ in range(n)]
    ports = [server.server_address[1] for server in made]
    for server in made:
        server.server_close()
    return ports


@pytest.mark.takes_long
@pytest.mark.skipif(not TRITON.exists(), reason="no .venv-triton: make test-triton makes it")
def test_triton_that_is_killed_and_restarted_loses_no_request(mpiexec, tmp_path):
    triton = Triton(tmp_path)
    triton.start()
    again = threading.Timer(20, lambda: (triton.kill(), triton.start()))
    again.start()
    try:
        simulation = MANY.replace("    for i", "    import time\n    for i").replace(
            "        right +=", "        time.sleep(0.15)\n        right +="
        )
        done = start(mpiexec, tmp_path, triton.url, simulation, 3, timeout=150)
    finally:
        again.cancel()
        again.join()
        triton.kill()
        print((tmp_path / "triton.log").read_text()[-3000:])
    assert done.returncode == 0
    assert lines(done.stdout) == ["rank 0: 150 right", "rank 1: 150 right"]
