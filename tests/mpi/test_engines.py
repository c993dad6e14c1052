"""Engines in C answer as the model does, without Python on the way, in the rank and in a child."""

import time
from pathlib import Path

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, tensor
from mpi.models import labelled

import mpiserve
from mpiserve.serving.isolation.isolated import Isolated
from mpiserve.serving.worker import IDLE

CACHE = Path(__file__).parents[2] / "build/test-engines"  # kept: a compilation takes a while
LABELS, REQUESTS = 5, 1500
WIDE = 64  # numbers of a row, which has no room in a slot
MESSAGES = 8  # to a child at most, besides batches: to load, to attach memory, to end
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


@pytest.fixture
def asked(monkeypatch):
    """How often each child of a model has asked Python for something to do, until its end."""
    looks, close = [], Isolated.close

    def closing(self):
        if self._child:
            looks.append(self._child._channel.calls.looks)
        close(self)

    monkeypatch.setattr(Isolated, "close", closing)
    return looks


def check(counters, seconds, asked, others):
    """Compare the entries of interpreters with the time that has passed, and with other causes."""
    looks = seconds / IDLE + 1
    in_python = counters["batches"] - counters["engine_batches"]
    assert counters["engine_batches"] >= REQUESTS
    assert counters["batch_calls"] <= looks + in_python + others
    for entries in asked:
        assert entries <= looks + in_python + MESSAGES


@pytest.mark.timeout(240)
@pytest.mark.roles(simulation=2, inference=1)
@pytest.mark.parametrize(
    "isolate", ["auto", *(pytest.param(one, marks=pytest.mark.takes_long) for one in (True, False))]
)
def test_a_compiled_model_answers_as_the_module_without_python(world, monkeypatch, asked, isolate):
    monkeypatch.setenv("MPISERVE_CACHE", str(CACHE))
    begin = time.monotonic()
    counters = couple(world, {"net": SERVICE | {"isolate": isolate}}, simulate)
    if world.role == INFERENCE:
        check(counters, time.monotonic() - begin, asked, others=2)  # two changes: load, swap
        assert len(asked) == (2 if isolate else 0)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("isolate", [False, True])
def test_an_echo_needs_no_python(world, asked, isolate):
    def ask_often(session):
        served = session.service("echo")
        for i in range(REQUESTS):
            x = np.full((1 + i % 3, WIDE), i, np.float64)
            np.testing.assert_array_equal(served(x), x)

    begin = time.monotonic()
    service = {"backend": "echo", "inputs": [tensor("x", "float64", WIDE)], "isolate": isolate}
    counters = couple(world, {"echo": service}, ask_often)
    if world.role == INFERENCE:
        check(counters, time.monotonic() - begin, asked, others=0)
        assert len(asked) == isolate
