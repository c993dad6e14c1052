"""A model that torch has compiled answers as the module does, without Python on the way."""

import time
from pathlib import Path

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, tensor
from mpi.models import labelled

import mpiserve
from mpiserve.serving.worker import IDLE

CACHE = Path(__file__).parents[2] / "build/test-engines"  # kept: a compilation takes a while
LABELS, REQUESTS = 5, 1500
SERVICE = {
    "backend": "torch",
    "model": "models:labelled",
    "engine": "compiled",
    "inputs": [tensor("x", "float32", 8), tensor("label", "int64")],
    "outputs": [tensor("y", "float32", 8)],
    "max_batch_rows": 512,
    "max_delay_us": 0,
}


def ask(served, module, x, label):
    """Compare an answer with the module in this process."""
    import torch

    with torch.inference_mode():
        expected = module(torch.from_numpy(x), torch.from_numpy(label)).numpy()
    np.testing.assert_allclose(served(x, label), expected, rtol=1e-6, atol=1e-6)


def simulate(session):
    module = labelled().eval()
    served, random = session.service("net"), np.random.default_rng(session.comm.rank)
    assert served.engine.startswith("compiled"), served.engine
    for rows in (1, 2, 7, 64, 333, 512):
        x = random.standard_normal((rows, 8), dtype=np.float32)
        ask(served, module, x, random.integers(0, LABELS, rows))
    x, label = np.ones((1, 8), np.float32), np.array([3])
    for _ in range(REQUESTS):
        served(x, label)
    session.comm.barrier()
    if session.comm.rank == 0:
        with pytest.raises(mpiserve.Error, match="index out of range"):
            served(x, np.array([LABELS]))
        ask(served, module, x, label)
        session.reload("net")
    session.comm.barrier()
    ask(served, module, x, label)


@pytest.mark.timeout(240)
@pytest.mark.roles(simulation=2, inference=1)
def test_a_compiled_model_answers_as_the_module_without_python(world, monkeypatch):
    monkeypatch.setenv("MPISERVE_CACHE", str(CACHE))
    begin = time.monotonic()
    counters = couple(world, {"net": SERVICE}, simulate)
    looks = (time.monotonic() - begin) / IDLE
    if world.role == INFERENCE:
        changes, failed = 2, 1
        assert counters["engine_batches"] == counters["batches"] - failed >= REQUESTS
        # The end, and what an engine cannot do, besides the looks that time asks for.
        assert counters["batch_calls"] <= looks + 1 + changes + failed
