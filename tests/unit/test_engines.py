"""The choice between Python and an engine in C: right first, then the faster one."""

import logging
import time

import numpy as np
import pytest
from workers import service_of

from mpiserve import Backend
from mpiserve.backends.base import Native
from mpiserve.errors import ConfigError, ModelError
from mpiserve.serving import engines


class Model(Backend):
    """What Python runs: the identity, so that the engine that copies is right."""

    seconds, factor = 1e-3, 1.0
    build = None
    together = copies = False

    def compiled(self, build):
        self.build = build
        return Native(None, text="compiled by a test")

    def run(self, inputs):
        time.sleep(self.seconds)
        return [self.factor * inputs[0]]

    def run_batch(self, inputs, outputs, done):
        outputs[0][:] = self.run(inputs)[0]
        return outputs


def service(engine="auto", **table):
    made = service_of("s", backend="echo", **{"warmup": True, "max_batch_rows": 64} | table)
    return made.model_copy(update={"engine": engine})


def choose(model, engine="auto", examples=None, **table):
    made = service(engine, **table)
    return engines.choose(model(made), made, examples)


def test_the_faster_one_is_taken(caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    chosen = choose(Model)
    assert chosen.text.startswith("compiled by a test, 1 row")
    assert "service s is run by the compiled engine" in caplog.text and "64 rows" in caplog.text


def test_python_stays_where_it_is_as_fast(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    monkeypatch.setattr(engines, "GAIN", 0.0)
    assert choose(Model) is None
    assert "service s is run by Python" in caplog.text


def test_one_that_is_required_is_taken_and_built_at_any_speed(monkeypatch):
    monkeypatch.setattr(engines, "GAIN", 0.0)
    made = service("compiled")
    model = Model(made)
    assert engines.choose(model, made, None) and model.build
    auto = Model(service())
    engines.choose(auto, service(), None)
    assert auto.build is False
    engines.choose(auto, service(), None, build=True)
    assert auto.build is True


class Wrong(Model):
    factor = 1.001


class Unclear(Model):
    def run(self, inputs):
        raise ValueError("no such rows")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Wrong, r"on 1 row, output 'x' differs from the model's: by 0\.\d+"),
        (Unclear, "accepts neither zeros nor random rows"),
        (Backend, "the backend 'echo' compiles nothing"),
        (type("Copies", (Model,), {"copies": True}), "changes or keeps its inputs"),
    ],
)
def test_one_that_is_not_right_is_refused(model, why):
    assert choose(model) is None
    with pytest.raises(ModelError, match=f"engine = 'compiled' is not possible: .*{why}"):
        choose(model, "compiled")


def test_auto_says_why_python_runs_the_model(caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    made = service().model_copy(update={"backend": "torch"})
    engines.choose(type("Copies", (Model,), {"copies": True})(made), made, None)
    (refused,) = caplog.messages
    assert "service s is run by" in refused
    assert refused.endswith(
        "the compiled one is not possible: the model changes or keeps its inputs"
    )


def test_an_operation_that_is_not_torchs_is_refused_by_name():
    import torch

    from mpiserve.backends.torch import ahead_of_time

    @torch.library.custom_op("mpiserve_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)

    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(twice(x))

    program = torch.export.export(Net(), (torch.zeros(2, 3),), strict=False)
    with pytest.raises(ModelError, match="calls mpiserve_test::twice, which is no operation"):
        ahead_of_time._check_operations(program)


def test_a_torch_without_headers_says_so(monkeypatch, tmp_path):
    from mpiserve.backends.torch import ahead_of_time

    monkeypatch.setattr(ahead_of_time, "_torch_folder", lambda: tmp_path)
    monkeypatch.setattr(ahead_of_time, "_check_compiler", lambda: None)
    with pytest.raises(ModelError, match="torch is installed without the headers"):
        ahead_of_time._compile_library(tmp_path)


def test_it_is_compared_on_examples_alone_where_there_are_some():
    class Strict(Model):
        def run(self, inputs):
            assert (inputs[0] == 5).all()
            return super().run(inputs)

    assert choose(Strict, examples=(np.full((3, 2), 5, np.float32),))


def test_without_warm_up_nothing_is_compared():
    with pytest.raises(ModelError, match="needs warmup"):
        choose(Model, "compiled", warmup=False)


@pytest.mark.parametrize(
    ("mine", "theirs", "dtype", "text"),
    [
        ([1, 2], [1, 2], "int32", ""),
        ([1, 2], [1, 3], "int32", "other integers"),
        ([1, np.nan], [1, np.nan], "float32", ""),
        ([1, np.inf], [1, np.nan], "float32", "other infinities"),
        ([1, 0], [1, np.nan], "float32", "other infinities"),
        ([1, 1e-7], [1, 0], "float32", ""),
        ([1, 1e-3], [1, 0], "float32", "by 0.001, where the largest value is 1"),
        ([np.nan, 0], [1, 0], "float32", "by nan"),
        ([1, 1e-7], [1, 0], "float64", "by 1e-07"),
        ([1, 1e-7j], [1, 0], "complex64", ""),
        ([1, 1e-3j], [1, 0], "complex64", "by 0.001, where the largest value is 1"),
        ([1, 1e-7j], [1, 0], "complex128", "by 1e-07"),
    ],
)
def test_rounding_is_told_from_differences(mine, theirs, dtype, text):
    found = engines._difference(np.array(mine, dtype), np.array(theirs, dtype))
    assert found.startswith(text) and bool(found) == bool(text)


def test_the_configuration_names_an_engine_that_the_backend_has():
    torch = {
        "backend": "torch",
        "model": "m:f",
        "outputs": [{"name": "y", "dtype": "float32", "shape": [-1]}],
    }
    assert service_of("s", **torch, engine="compiled").engine == "compiled"
    for table, text in (
        (torch | {"engine": "fast"}, r"unknown engine 'fast' \(one of: auto, eager"),
        (torch | {"engine": "onnx"}, "the backend 'torch' has no engine 'onnx'"),
        (torch | {"engine": "compiled", "preprocess": "m:f"}, "not possible with preprocess"),
        (torch | {"backend": "deepspeed", "engine": "eager", "tensor_parallel": 2}, "1 rank"),
        ({"backend": "echo", "engine": "eager"}, "the backend 'echo' has no engine"),
    ):
        with pytest.raises(ConfigError, match=text):
            service_of("s", **table)
