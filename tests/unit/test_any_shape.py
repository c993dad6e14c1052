"""Models whose tensors have free dimensions: what they get and return, without MPI."""

import sys

import numpy as np
import pytest

from mpiserve import backends
from mpiserve.backends.arrays import checked, zeros
from mpiserve.config import Config
from mpiserve.errors import ModelError
from mpiserve.serving.isolation.channel import reshaped
from mpiserve.serving.warmup import Warmup

MODEL = """
def half(x):
    return x[:, : x.shape[1] // 2 + 1]
"""
TENSOR = {"dtype": "float64", "shape": [-1, -1, 2]}


def made(folder, monkeypatch, **settings):
    (folder / "any_shape_model.py").write_text(MODEL)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    x, y = ({"name": n, **TENSOR, "max_shape": [-1, m, 2]} for n, m in (("x", 8), ("y", 5)))
    table = {"backend": "python", "model": "any_shape_model:half", "max_batch_rows": 4}
    table |= {"inputs": [x], "outputs": [y], **settings}
    config = Config.from_dict({"service": {"s": table}}, source="the test", folder=folder)
    backend = backends.create(config.services[0])
    backend.load()
    return backend


def test_a_model_gets_and_returns_arrays_of_any_size(tmp_path, monkeypatch):
    backend = made(tmp_path, monkeypatch)
    room = zeros(backend.service.outputs, 3)
    assert room[0].shape == (3, 5, 2)
    for n in (1, 8, 3):
        x = np.random.default_rng(n).random((3, n, 2))
        np.testing.assert_array_equal(
            backend.run_batch((x,), room, lambda _: None), x[:, : n // 2 + 1]
        )
    with pytest.raises(ModelError, match="free dimensions, which an engine in C is not told"):
        backend.compiled(True)


def test_warm_up_uses_the_largest_and_finds_independent_rows(tmp_path, monkeypatch):
    backend = made(tmp_path, monkeypatch)
    warmup = Warmup(backend, backend.service, None)
    warmup.look()
    warmup.settle()
    assert not backend.together and not backend.native and not warmup.remarks


def test_results_beyond_the_largest_are_refused(tmp_path, monkeypatch):
    y, dtype = made(tmp_path, monkeypatch).service.outputs[0], np.dtype("float64")
    assert checked(np.zeros((3, 4, 2)), y, dtype, 3).shape == (3, 4, 2)
    for shape in [(3, 6, 2), (2, 5, 2), (3, 5, 1), (3, 5)]:
        with pytest.raises(ModelError, match=r"'y': expected float64 at most \[3, 5, 2\], got"):
            checked(np.zeros(shape), y, dtype, 3)


def test_a_smaller_array_lies_at_the_beginning_of_a_larger_one():
    room = np.zeros((3, 5))
    part = reshaped(room, (2, 4))
    part[:] = np.arange(8).reshape(2, 4)
    assert room.ravel()[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert reshaped(room, (3, 5)) is room
    with pytest.raises(ValueError, match="reshape"):
        reshaped(room, (4, 4))
