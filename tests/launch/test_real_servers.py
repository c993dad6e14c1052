"""The backend "remote" in a job, beside real servers that are killed and restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import language_models
import pytest
from coupling import RUN, lines, write
from inference_server import Server
from jobs import ROOT

pytest.importorskip("urllib3")

PYTHON = {name: ROOT / f".venv-{name}/bin/python" for name in ("triton", "serve")}
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
DOUBLE = """
[service.double]
backend = "remote"
model = "double"
options = {{ url = "{url}" }}
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 2] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 2] }}]
"""
DOUBLES = """
import time
import numpy as np, mpiserve
with mpiserve.open() as session:
    double, rank = session.service("double"), session.comm.rank
    right = 0
    for i in range(150):
        x = np.full((1 + i % 5, 2), 1000 * rank + i, np.float32)
        time.sleep(0.15)
        right += np.array_equal(double(x), 2 * x)
    print(f"rank {rank}: {right} right")
"""
TEXTS = """
inputs = [{{ name = "text", dtype = "uint8", shape = [-1, 32] }},
          {{ name = "max_new_tokens", dtype = "int64", shape = [-1] }}]
outputs = [{{ name = "text", dtype = "uint8", shape = [-1, 64] }},
           {{ name = "lengths", dtype = "int64", shape = [-1] }}]
"""
LANGUAGE = (
    """
[service.here]
backend = "torch"
model = "llama"
task = "generate"
max_batch_rows = 8
"""
    + TEXTS
    + """
[service.there]
backend = "remote"
model = "{model}"
task = "generate"
max_batch_rows = 8
options = {{ api = "openai", url = "{url}" }}
"""
    + TEXTS
)
SAME = """
import time
import numpy as np, mpiserve
from mpiserve import decode_text, encode_text
with mpiserve.open() as session:
    here, there, rank = session.service("here"), session.service("there"), session.comm.rank
    same = 0
    for i in range(60):
        texts = encode_text([f"Row {i} of rank {rank}", f"and {i * i}"], 32)
        room = np.array([8, 12])
        time.sleep(0.3)
        (a, counted), (b, counted_there) = here(texts, room), there(texts, room)
        same += decode_text(a) == decode_text(b) and np.array_equal(counted, counted_there)
    print(f"rank {rank}: {same} the same, such as {decode_text(b)[0]!r}")
"""


class RealServer:
    """A server in a process group of its own.

    Args:
        folder: For what it writes.
        python: Which runs it.
        arguments: Of Python.
        port: Where it listens.
    """

    def __init__(self, folder: Path, python: Path, arguments: list[str], port: int) -> None:
        self.folder, self._command = folder, [str(python), *arguments]
        # Triton looks for the library of its Python, which may be in no folder that is searched.
        self._libraries = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"], text=True
        ).strip()
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            cwd=self.folder,
            env=os.environ | {"LD_LIBRARY_PATH": self._libraries, "HF_HUB_OFFLINE": "1"},
            stdout=(self.folder / "server.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> RealServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        print((self.folder / "server.log").read_text()[-3000:])


def free_ports(n):
    made = [Server() for _ in range(n)]
    ports = [server.server_address[1] for server in made]
    for server in made:
        server.server_close()
    return ports


def needs(name):
    why = f"no .venv-{name}: make test-servers makes it"
    return pytest.mark.skipif(not PYTHON[name].exists(), reason=why)


def run_beside(server, mpiexec, ranks, seconds):
    """Run a job; kill the server and start it again after so many seconds of it."""
    again = threading.Timer(seconds, lambda: (server.kill(), server.start()))
    again.start()
    try:
        return mpiexec(["-n", ranks, *RUN, "c.toml", "sim.py"], timeout=150)
    finally:
        again.cancel()
        again.join()


@pytest.mark.takes_long
@needs("triton")
def test_triton_that_is_killed_and_restarted_loses_no_request(mpiexec, tmp_path):
    ports = free_ports(3)
    (tmp_path / "triton.py").write_text(TRITON_SERVER)
    arguments = ["triton.py", *map(str, ports)]
    with RealServer(tmp_path, PYTHON["triton"], arguments, ports[0]) as triton:
        write(tmp_path, DOUBLES, DOUBLE.format(url=triton.url))
        done = run_beside(triton, mpiexec, 3, 20)
    assert done.returncode == 0
    assert lines(done.stdout) == ["rank 0: 150 right", "rank 1: 150 right"]


@pytest.mark.takes_long
@needs("serve")
def test_transformers_serve_writes_what_the_model_writes_here(mpiexec, tmp_path):
    language_models.llama(tmp_path / "llama")
    language_models.tokenizer(tmp_path / "llama")
    (port,) = free_ports(1)
    arguments = ["-m", "transformers.cli.transformers", "serve", str(tmp_path / "llama")]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with RealServer(tmp_path, PYTHON["serve"], arguments, port) as server:
        write(tmp_path, SAME, LANGUAGE.format(model=tmp_path / "llama", url=server.url))
        done = run_beside(server, mpiexec, 4, 20)
    assert done.returncode == 0
    assert sorted(line.split(",")[0] for line in lines(done.stdout)) == [
        f"rank {rank}: 60 the same" for rank in range(2)
    ]
