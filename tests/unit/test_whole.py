"""Models whose tensors have no rows, between the functions of the user."""

import sys

import numpy as np
import pytest

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.errors import ModelError

FUNCTIONS = """
def before(x):
    assert x.shape == (4,)
    return x.reshape(2, 2)


def total(x):
    assert x.shape == (2, 2)
    return x.sum() if x[0, 0] else x


def after(total):
    assert total.shape == ()
    return total.reshape(1)
"""


def whole(name, *shape):
    return [{"name": name, "dtype": "float64", "shape": list(shape)}]


SERVICE = {
    "backend": "python",
    "model": "whole_functions:total",
    "preprocess": "whole_functions:before",
    "postprocess": "whole_functions:after",
    "rows": "none",
    "inputs": whole("x", 4),
    "model_inputs": whole("x", 2, 2),
    "model_outputs": whole("total"),
    "outputs": whole("y", 1),
}


def test_functions_and_model_get_arrays_without_rows(tmp_path, monkeypatch):
    (tmp_path / "whole_functions.py").write_text(FUNCTIONS)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    config = Config.from_dict({"service": {"s": SERVICE}}, source="the test", folder=tmp_path)
    backend = backends.create(config.services[0])
    backend.load()
    (result,) = backend.run_batch((np.arange(1.0, 5)[None],), (np.zeros((1, 1)),), lambda _: None)
    assert result.tolist() == [[10.0]]
    with pytest.raises(ModelError, match=r"'total': expected float64 \[\], got float64 \[2, 2\]"):
        backend.run((np.zeros((1, 4)),))
