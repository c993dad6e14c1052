"""Rows that belong together, and inputs that are written to or kept, are found at warm-up."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import row_models
import torch
from language_models import onnx_file

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.errors import ConfigError, ModelError
from mpiserve.serving import model_probe, warmup

FOLDER = Path(row_models.__file__).parent
LIKE = {"dtype": "float32", "shape": [-1, 2]}


def service_of(model, backend="torch", **table):
    table = {
        "backend": backend,
        "model": f"row_models:{model}",
        "inputs": [{"name": "x", **LIKE}],
        "outputs": [{"name": "y", **LIKE}],
    } | table
    return Config.from_dict({"service": {"s": table}}, folder=FOLDER).services[0]


def warm(model, *args, comm=None, old=None, **table):
    """Give the backend of a model that has been warmed up, and what is to be said of it."""
    service = service_of(model, *args, **table)
    backend = backends.create(service)
    backend.load()
    done = warmup.Warmup(backend, service, comm)
    done.look()
    done.settle(old)
    return backend, done.remarks


def module(name, backend="torch", **table):
    return warm("module", backend, options={"arguments": {"name": name}}, **table)


@pytest.mark.parametrize("name", row_models.TOGETHER)
def test_rows_that_belong_together_are_found(name):
    backend, (remark,) = module(name)
    assert backend.together
    assert not backend.copies
    assert 'rows = "together"' in remark


@pytest.mark.parametrize("name", row_models.UNSURE)
def test_unknown_rows_are_together_too(name):
    backend, (remark,) = module(name)
    assert backend.together
    assert "it is unknown whether rows are independent" in remark
    assert not module(name, rows="independent")[0].together, "that is the user's word"
    assert module(name, rows="independent")[1] == module(name, rows="together")[1] == []


@pytest.mark.parametrize("name", row_models.INDEPENDENT)
def test_rows_that_are_independent_may_be_merged(name):
    backend, remarks = module(name)
    assert not backend.together
    assert not backend.copies
    assert remarks == []


@pytest.mark.parametrize("name", row_models.CHANGES)
def test_a_module_that_writes_to_its_input_gets_copies(name):
    backend, remarks = module(name)
    assert backend.copies
    assert any("changes its input" in remark for remark in remarks)
    with pytest.raises(ModelError, match=r"service\.s\.input_memory: .*changes its input.*copy"):
        module(name, input_memory="view")


@pytest.mark.parametrize("name", row_models.KEEPS)
def test_a_module_that_keeps_its_input_gets_copies(name):
    backend, remarks = module(name)
    assert backend.copies
    assert any("its input, so it gets copies" in remark for remark in remarks)


@pytest.mark.parametrize("name", ["mean", "twice", "sub_", "dropout"])
def test_the_default_backend_is_looked_at_alike(name):
    backend, _ = module(name, "deepspeed")
    assert backend.together == (name in ("mean", "dropout"))
    assert backend.copies == (name == "sub_")


CALLABLES = {
    "mean": "together",
    "votes": "together",
    "Counting": "together",
    "wide": "together",
    "subtract": "copies",
    "writeable": "copies",
    "by_address": "copies",
    "Keeping": "copies",
    "of_clients": "",
}


@pytest.mark.parametrize("name", CALLABLES)
def test_callables_are_looked_at_alike(name):
    backend, remarks = warm(name, "python")
    assert (backend.together, backend.copies) == (
        CALLABLES[name] == "together",
        CALLABLES[name] == "copies",
    )
    assert len(remarks) == (CALLABLES[name] != "")


@pytest.mark.parametrize("limit", [1, 3, 41])
@pytest.mark.parametrize("settings", [{}, {"warmup": False}])
def test_answers_of_a_model_that_is_random_are_not_kept(settings, limit):
    table = {"cache_rows": 9, "max_batch_rows": limit, "rows": "independent"} | settings
    table |= {"input_memory": "view"}
    with pytest.raises(ModelError) as caught:
        module("dropout", **table)
    text = "service.s.cache_rows: output 'y' differs by "
    assert caught.value.text.startswith(text), caught.value.text
    assert caught.value.text.endswith("the model is random, or has a state; remove it")
    assert module("twice", **table)[1] == []


def test_ranks_that_run_a_model_together_call_it_as_often_whatever_it_answers():
    for rows, again in ((1, 8), (4, 8), (16, 2), (100, 1)):
        counts = []
        for changes in (False, True):
            calls = []

            def call(given, calls=calls, changes=changes):
                calls.append(given)
                return [given[0] + changes * len(calls)]

            candidates = iter([(np.ones((rows, 2)),)])
            found, why = model_probe.unlike(call, candidates, lambda: None, ["y"], 1e-9)
            assert bool(found) == changes and not why
            counts.append(len(calls))
        assert counts == [1 + again] * 2


def test_answers_of_models_for_whole_requests_are_not_kept():
    for name, table in {"mean": {}, "twice": {"warmup": False}}.items():
        with pytest.raises(ModelError, match="only independent rows are kept, and .* or remove it"):
            module(name, cache_rows=9, **table)
    with pytest.raises(ModelError, match="the model asks who its clients are; remove it"):
        warm("of_clients", "python", cache_rows=9)


def test_a_model_that_fails_on_random_rows_is_not_known_to_answer_alike():
    table = {"warmup": False, "rows": "independent", "input_memory": "view", "cache_rows": 9}
    backend, remarks = warm("fails", "python", **table)
    assert not backend.together
    (remark,) = remarks
    assert remark.startswith("cache_rows: it is unknown whether the model answers a row alike: it ")
    assert 'set warmup = "file.npz"' in remark


@pytest.mark.parametrize("dtype", ["int64", "uint8", "int16"])
@pytest.mark.parametrize(
    ("name", "together", "copies"),
    [("embed", False, False), ("shares", True, False), ("decrement", False, True)],
)
def test_integers_stay_where_tables_have_an_entry(name, together, copies, dtype):
    inputs = [{"name": "i", "dtype": dtype, "shape": [-1, 2]}]
    backend, _ = warm(name, "python", inputs=inputs)
    assert (backend.together, backend.copies) == (together, copies)


@pytest.mark.parametrize("limit", [2, 3, 41])
def test_few_rows_are_enough(limit):
    assert module("mean", max_batch_rows=limit)[0].together
    assert not module("network", max_batch_rows=limit)[0].together
    assert module("sub_", max_batch_rows=limit)[0].copies


def test_one_row_has_no_neighbour():
    backend, remarks = module("mean", max_batch_rows=1)
    assert (backend.together, remarks) == (False, [])
    assert module("sub_", max_batch_rows=1)[0].copies


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_rounding_is_that_of_the_dtype(dtype):
    tensors = {"dtype": dtype, "shape": [-1, 2]}
    signature = {
        "inputs": [{"name": "x", **tensors}],
        "outputs": [{"name": "y", **tensors}],
        "dtype": dtype,
    }
    assert module("mean", **signature)[0].together
    assert not module("network", **signature)[0].together


def test_without_warmup_nothing_is_known():
    backend, remarks = module("twice", warmup=False)
    assert backend.together
    assert backend.copies
    assert len(remarks) == 2
    known = {"rows": "independent", "input_memory": "view"}
    backend, remarks = module("twice", warmup=False, **known)
    assert (backend.together, backend.copies, remarks) == (False, False, [])


def test_a_configuration_that_is_wrong_about_rows_is_an_error():
    with pytest.raises(ModelError, match=r"service\.s\.rows: 'independent', but .* set rows = "):
        module("mean", rows="independent")
    with pytest.raises(ModelError, match=r"service\.s\.chunk_rows: cuts requests, but .* remove"):
        module("mean", chunk_rows=16)
    with pytest.raises(ConfigError, match="chunk_rows: cuts requests, which rows = 'together' ex"):
        module("mean", chunk_rows=16, rows="together")
    with pytest.raises(ConfigError, match="task 'generate'"):
        service_of("x", task="generate", rows="together")
    assert module("mean", rows="together")[1] == []


def test_a_module_whose_rows_belong_together_is_not_cut():
    x = np.arange(800, dtype=np.float32).reshape(400, 2)
    for name, expected in ("mean", x - x.mean(0)), ("noise", None):
        backend, _ = module(name, chunk_rows=0 if expected is not None else 16)
        calls = []
        backend.module.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args))
        out = np.zeros_like(x)
        backend.run_batch((x,), (out,), lambda rows: None)
        assert [len(args[0]) for args in calls] == [400]
        if expected is not None:
            np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_copies_are_let_go_after_their_batch():
    backend, _ = module("sub_")
    for rows in range(1, 4):
        x = np.full((rows, 2), 5, np.float32)
        out = np.zeros_like(x)
        backend.run_batch(backend.given((x,)), (out,), lambda rows: None)
        assert (x == 5).all()
        assert (out == 4).all()
    assert not backend._known


def test_a_buffer_that_a_module_returns_again_and_again_is_read_at_once():
    backend, remarks = warm("Same", chunk_rows=4)
    assert remarks == []
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    out = np.zeros_like(x)
    backend.run_batch((x,), (out,), lambda rows: None)
    np.testing.assert_array_equal(out, 2 * x)


# ---- between preprocess and postprocess


@pytest.mark.parametrize("where", ["preprocess", "postprocess"])
def test_functions_beside_the_model_are_looked_at_with_it(where):
    one = {"name": "twice"}
    with_mean, _ = warm("module", options={"arguments": one}, **{where: "row_models:mean"})
    assert with_mean.together
    plain, remarks = warm("module", options={"arguments": one}, **{where: "row_models:of_one"})
    assert (plain.together, plain.copies, remarks) == (False, False, [])


def test_what_preprocess_hands_on_is_the_clients_memory():
    one = {"name": "seldom"}
    backend, _ = warm("module", options={"arguments": one}, preprocess="row_models:of_one")
    assert backend.copies
    backend, _ = warm("of_one", "python", preprocess="row_models:kept")
    assert backend.copies


# ---- examples


SQUARE = {"dtype": "float32", "shape": [-1, 2, 2]}
SIGNATURE = {"inputs": [{"name": "a", **SQUARE}], "outputs": [{"name": "b", **SQUARE}]}


def test_a_model_that_fails_on_zeros_says_how_to_warm_it_up(tmp_path):
    with pytest.raises(ModelError, match=r'runs on zeros.* warmup = "file\.npz".*warmup = false'):
        warm("Solve", **SIGNATURE)
    a = np.random.default_rng(0).random((3, 2, 2), np.float32) + 2 * np.eye(2, dtype=np.float32)
    np.savez(tmp_path / "rows.npz", a=a)
    for more in {}, {"postprocess": "row_models:of_one"}:
        backend, remarks = warm("Solve", **SIGNATURE, warmup=f"{tmp_path}/rows.npz", **more)
        assert (backend.together, backend.copies, remarks) == (False, False, [])


def test_a_wrong_shape_is_not_put_down_to_zeros():
    wide = [{"name": "y", "dtype": "float32", "shape": [-1, 3]}]
    with pytest.raises(ModelError) as caught:
        module("twice", outputs=wide)
    assert "expected float32 [1, 3], got float32 [1, 2]" in str(caught.value)
    assert "zeros" not in str(caught.value)


def test_rows_are_compared_on_examples(tmp_path):
    x = np.random.default_rng(0).random((50, 2), np.float32) * 1000 + 500
    np.savez(tmp_path / "x.npz", x=x)
    backend, remarks = warm("wide", "python", warmup=f"{tmp_path}/x.npz")
    assert (backend.together, remarks) == (False, [])
    backend, _ = warm("mean", "python", warmup=f"{tmp_path}/x.npz")
    assert backend.together
    np.savez(tmp_path / "x.npz", x=x[:1])
    backend, (remark,) = warm("of_one", "python", warmup=f"{tmp_path}/x.npz")
    assert backend.together
    assert "the same on all" in remark, "one example tells nothing about its neighbours"


WRONG = {
    "x.npz: .*No such file": None,
    "x.npz: no array for the input 'x'; the file has z": {"z": np.zeros((2, 2), np.float32)},
    "the array 'z' is not an input": {"x": np.zeros((2, 2), np.float32), "z": np.zeros(1)},
    r"array 'x': expected float32 \[2, 2\], got float64 \[2, 2\]": {"x": np.zeros((2, 2))},
    r"array 'x': expected float32 \[2, 2\], got float32 \[2, 3\]": {
        "x": np.zeros((2, 3), np.float32)
    },
    "the same number of rows": {"x": np.zeros((0, 2), np.float32)},
    "x.npz: .*pickle": {"x": np.array([{}])},
}


@pytest.mark.parametrize("match", WRONG)
def test_examples_that_do_not_fit_are_named(tmp_path, match):
    if WRONG[match]:
        np.savez(tmp_path / "x.npz", **WRONG[match])
    with pytest.raises(ModelError, match=r"service\.s\.warmup: .*" + match):
        warm("mean", "python", warmup=f"{tmp_path}/x.npz")


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "x.npz").write_text("nothing")
    with pytest.raises(ModelError, match=r"service\.s\.warmup: .*x\.npz: "):
        warm("mean", "python", warmup=f"{tmp_path}/x.npz")


# ---- cost


def test_looking_costs_a_few_rows():
    torch.manual_seed(0)
    counts = []
    service = service_of("module", options={"arguments": {"name": "network"}}, chunk_rows=64)
    backend = backends.create(service)
    backend.load()
    backend.module.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    warm = warmup.Warmup(backend, service, None)
    warm.look()
    warm.settle()
    assert counts.count(service.max_batch_rows) == 1
    assert len(counts) < 12
    assert sum(counts) < service.max_batch_rows + 300


# ---- onnx


def onnx_mean(path):
    """Write x - mean(x) over the rows."""
    from onnx import TensorProto, checker, helper, save

    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1)
    less = helper.make_node("Sub", ["x", "m"], ["y"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "xy"]
    graph = helper.make_graph([mean, less], "mean", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    save(model, path)


def test_onnx_models_are_looked_at_alike(tmp_path):
    onnx_mean(tmp_path / "mean.onnx")
    onnx_file(tmp_path / "net.onnx", torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()))
    for name, together in ("mean", True), ("net", False):
        service = service_of("x", "onnx").model_copy(update={"model": f"{tmp_path}/{name}.onnx"})
        backend = backends.create(service)
        backend.load()
        this = warmup.Warmup(backend, service, None)
        this.look()
        this.settle()
        assert (backend.together, backend.copies) == (together, False)
        with pytest.raises(ModelError, match=r"rows: 'independent'") if together else nullcontext():
            wrong = service.model_copy(update={"rows": "independent"})
            other = warmup.Warmup(backend, wrong, None)
            other.look()
            other.settle()
