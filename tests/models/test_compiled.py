"""Compiled models in jobs: ranks that start together compile once, and later jobs not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from coupling import RUN

MODELS = """\
import torch


def net():
    linear = torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.constant_(linear.weight, 0.5)
    return torch.nn.Sequential(linear, torch.nn.Tanh())
"""
CONFIG = """\
[service.net]
backend = "{backend}"
model = "models:net"
engine = "{engine}"
replicas = 2
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 3] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 2] }}]
max_batch_rows = 32
"""
SIMULATION = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    net = session.service("net")
    for rows in range(1, 33):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) / 100
        expected = np.tanh(x.sum(1, keepdims=True) / 2).repeat(2, 1)
        np.testing.assert_allclose(net(x), expected, rtol=1e-6, atol=1e-6)
    print(f"engine: {net.engine}", flush=True)
"""
# The ranks without a launcher of mpiserve's, so that the log of each can be read.
COUPLED = """\
import logging
import pathlib
import time

import mpiserve
import numpy as np
from mpi4py import MPI
from mpiserve.serving.isolation import compilation

compilation.DELAY = compilation.NICE = 0
comm = MPI.COMM_WORLD
changed = [pathlib.Path(f"changed-{rank}") for rank in (1, 2)]


class Watch(logging.Handler):
    def emit(self, record):
        if "is answered by the engine in C now" in record.getMessage():
            changed[comm.rank - 1].touch()


if comm.rank:
    logging.getLogger("mpiserve").setLevel("INFO")
    logging.getLogger("mpiserve").addHandler(Watch())
    logging.getLogger("mpiserve").addHandler(logging.StreamHandler())
with mpiserve.open(comm, "c.toml") as session:
    if session.role == "inference":
        session.serve()
    else:
        net, end, more = session.service("net"), time.monotonic() + 420, 3
        x = np.arange(6, dtype=np.float32).reshape(2, 3) / 100
        expected = np.tanh(x.sum(1, keepdims=True) / 2).repeat(2, 1)
        while time.monotonic() < end and more:
            more -= all(path.exists() for path in changed)
            np.testing.assert_allclose(net(x), expected, rtol=1e-6, atol=1e-6)
            time.sleep(0.01)
        print(f"changed: {not more}", flush=True)
"""
MADE = "compiled the model in"
CHOSEN = ("is run by the compiled engine", "is run by Python")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "sim.py").write_text(SIMULATION)

    def write(engine, backend="torch"):
        (tmp_path / "c.toml").write_text(CONFIG.format(engine=engine, backend=backend))

    return write


@pytest.mark.timeout(800)
@pytest.mark.takes_long
def test_a_job_compiles_once_while_it_answers_and_later_jobs_find_it(files, mpiexec, tmp_path):
    env = {"MPISERVE_CACHE": str(tmp_path / "cache"), "MPISERVE_COMPILE": "1"}
    files("auto")
    (tmp_path / "coupled.py").write_text(COUPLED)
    first = mpiexec(["-n", 3, sys.executable, "coupled.py"], env=env, timeout=450)
    assert first.returncode == 0 and "changed: True" in first.stdout
    assert first.stderr.count(MADE) == 1
    assert first.stderr.count("torch compiles its model, while Python answers") == 1
    files("auto", "deepspeed")
    second = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env=env, timeout=300)
    assert second.returncode == 0 and MADE not in second.stderr
    assert sum(second.stderr.count(text) for text in CHOSEN) == 2


@pytest.mark.takes_long
def test_a_machine_without_a_compiler_says_so(files, tmp_path):
    files("compiled")
    env = os.environ | {"MPISERVE_CACHE": str(tmp_path / "cache"), "CXX": "no-such-compiler"}
    command = [sys.executable, "-P", "-m", "mpiserve", "compile", "c.toml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 1
    assert "it needs a C++ compiler, and there is no 'no-such-compiler'" in done.stderr
