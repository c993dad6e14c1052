"""Compiled models in jobs: ranks that start together compile once, and later jobs not at all."""

from __future__ import annotations

import pytest
from coupling import RUN

MODELS = """\
import torch


def net():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
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
import models
import mpiserve
import numpy as np
import torch

with mpiserve.open() as session:
    net, module = session.service("net"), models.net()
    for rows in range(1, 33):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) / 100
        with torch.inference_mode():
            expected = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(net(x), expected, rtol=1e-6, atol=1e-6)
    print(f"engine: {net.engine}", flush=True)
"""
MADE = "compiled the model in"
CHOSEN = ("is run by the compiled engine", "is run by Python")


@pytest.fixture
def job(mpiexec, tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "sim.py").write_text(SIMULATION)

    def run(engine, backend="torch", **env):
        (tmp_path / "c.toml").write_text(CONFIG.format(engine=engine, backend=backend))
        env = {"MPISERVE_CACHE": str(tmp_path / "cache")} | env
        return mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env=env, timeout=300)

    return run


@pytest.mark.timeout(600)
def test_ranks_compile_once_and_later_jobs_find_it(job, tmp_path):
    first = job("auto")
    assert first.returncode == 0 and "engine: torch.nn" in first.stdout
    assert MADE not in first.stderr and not (tmp_path / "cache").exists()
    second = job("compiled")
    assert second.returncode == 0 and "engine: compiled by torch" in second.stdout
    assert second.stderr.count(MADE) == 1
    third = job("auto", "deepspeed")
    assert third.returncode == 0 and MADE not in third.stderr
    assert sum(third.stderr.count(text) for text in CHOSEN) == 2


def test_a_machine_without_a_compiler_says_so(job):
    done = job("compiled", CXX="no-such-compiler")
    assert done.returncode != 0
    assert "it needs a C++ compiler, and there is no 'no-such-compiler'" in done.stderr
