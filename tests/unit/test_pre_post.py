"""Functions of the user's before and after a model."""

import sys

import numpy as np
import pytest

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.errors import ConfigError, ModelError
from mpiserve.serving.served_model import zeros

FUNCTIONS = """
import numpy as np
import torch


def lengths(text):
    return {"used": (text > 0).sum(1), "codes": text.astype(np.float32)}


def both(codes, used):
    return codes * used[:, None].astype(np.float32)


def cut(codes):
    return codes[:2], np.ones(2, np.int64)


def largest(values):
    return values.argmax(1), values.max(1)


def bad(*_):
    raise ValueError("not a text")


class Product(torch.nn.Module):
    def forward(self, codes, used):
        return codes * used[:, None]


number = 3
"""


def tensor(name, dtype, *shape):
    return {"name": name, "dtype": dtype, "shape": [-1, *shape]}


TABLE = {
    "backend": "python",
    "model": "functions:both",
    "preprocess": "functions:lengths",
    "postprocess": "functions:largest",
    "inputs": [tensor("text", "uint8", 4)],
    "model_inputs": [tensor("codes", "float32", 4), tensor("used", "int64")],
    "model_outputs": [tensor("values", "float32", 4)],
    "outputs": [tensor("where", "int64"), tensor("value", "float32")],
}
TEXT = np.array([[1, 9, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0]], np.uint8)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions", raising=False)
    (tmp_path / "functions.py").write_text(FUNCTIONS)

    def build(**table):
        config = Config.from_dict({"service": {"s": TABLE | table}}, folder=tmp_path)
        made = backends.create(config.services[0])
        made.load()
        return made

    return build


@pytest.mark.parametrize("model", [{}, {"backend": "torch", "model": "functions:Product"}])
def test_a_model_gets_and_gives_what_the_functions_make_of_it(make, model):
    backend = make(**model)
    where, value = backend.run((TEXT,))
    assert where.tolist() == [1, 2, 0]
    assert value.tolist() == [18, 9, 0]
    assert "Product" in backend.engine or "both" in backend.engine
    backend.tune(zeros(backend.service.inputs, 2), zeros(backend.service.outputs, 2))
    with backend.serving():
        assert backend.run((TEXT[:1],))[1].tolist() == [18]
    backend.close()


def test_either_function_may_be_left_out(make):
    codes = {"inputs": TABLE["model_inputs"], "preprocess": None, "model_inputs": None}
    arrays = np.ones((3, 4), np.float32), np.array([5, 6, 7])
    assert make(**codes).run(arrays)[1].tolist() == [5, 6, 7]
    values = {"outputs": TABLE["model_outputs"], "postprocess": None, "model_outputs": None}
    assert make(**values).run((TEXT[:1],)).tolist() == [[2, 18, 0, 0]]


@pytest.mark.parametrize(
    ("table", "error", "text"),
    [
        ({"preprocess": "functions:bad"}, ValueError, "not a text"),
        ({"postprocess": "functions:bad"}, ValueError, "not a text"),
        ({"preprocess": "functions:cut"}, ModelError, r"input 'codes': expected float32 \[3, 4\]"),
        ({"preprocess": "functions:largest"}, ModelError, "input 'codes': expected float32"),
        ({"model": "functions:cut"}, TypeError, "cut"),
        ({"model": "functions:largest"}, TypeError, "largest"),
    ],
)
def test_what_goes_wrong_on_a_batch_is_named(make, table, error, text):
    with pytest.raises(error, match=text):
        make(**table).run((TEXT,))


@pytest.mark.parametrize(
    ("table", "error", "text"),
    [
        ({"preprocess": "nowhere:f"}, ModelError, "no module 'nowhere'"),
        ({"postprocess": "functions:number"}, ModelError, "'functions:number' is not callable"),
        ({"preprocess": "functions"}, ConfigError, "preprocess: must be 'module:callable'"),
        ({"preprocess": None}, ConfigError, "model_inputs: needs preprocess"),
        ({"model_outputs": []}, ConfigError, "model_outputs: missing"),
        (
            {"backend": "echo", "outputs": [], "model_inputs": None, "model_outputs": None},
            ModelError,
            "'echo' calls no preprocess and postprocess",
        ),
    ],
)
def test_what_cannot_be_is_named_before_the_service_is_ready(make, table, error, text):
    with pytest.raises(error, match=text):
        make(**table)
