"""Derivatives of torch modules: against finite differences and torch.func."""

import logging
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from mpiserve.backends.torch.derivatives import CALLS
from mpiserve.config import Config
from mpiserve.errors import ConfigError, ModelError
from mpiserve.launch.static_check import findings
from mpiserve.serving.loading import Loader

MODELS = """
import torch
from torch import nn


def smooth(inputs, outputs):
    torch.manual_seed(inputs)
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def wide():
    return smooth(3, 5)


def narrow():
    return smooth(5, 2)


class Mixed(nn.Module):
    def forward(self, x, phase, p):
        y = torch.sin(x).sum(1) * p[:, 0, 0] * phase
        return {"y": y, "label": (y > 0).long(), "z": p * x[:, :1, None] ** 2}


class Free(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            return x * 2


class Copied(nn.Module):
    def forward(self, x):
        return x.detach().requires_grad_() * 2


class Coupled(nn.Module):
    def forward(self, x):
        return x * x.sum(0)


class Linear(nn.Module):
    def forward(self, x):
        return 3 * x


class Cube(torch.autograd.Function):
    # Without vmap: torch cannot batch it. Its backward cannot be differentiated.
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, v):
        return v.detach() * 3 * ctx.saved_tensors[0] ** 2


class Partly(nn.Module):
    def forward(self, x):
        return torch.sin(x) + Cube.apply(x)


class Own(nn.Module):
    def __init__(self, times=1):
        super().__init__()
        self.times = times

    def forward(self, x):
        return Cube.apply(x).repeat(1, self.times)
"""


@pytest.fixture(autouse=True)
def models(tmp_path):
    (tmp_path / "dmodels.py").write_text(MODELS)


def table(model, inputs, outputs, kinds=("vjp", "jvp", "jacobian"), **keys):
    tensors = [
        [{"name": name, "dtype": dtype, "shape": [-1, *shape]} for name, dtype, *shape in side]
        for side in (inputs, outputs)
    ]
    keys = {
        "backend": "torch",
        "model": model if "." in model else f"dmodels.py:{model}",
        "max_batch_rows": 16,
    } | keys
    return keys | {"inputs": tensors[0], "outputs": tensors[1], "derivatives": list(kinds)}


def load(folder, kind, *arguments, **keys):
    config = Config.from_dict({"service": {"net": table(*arguments, **keys)}}, folder=folder)
    service = config.service[f"net.{kind}"]
    return Loader(None, 0, logging.getLogger("test").info).load(service)


def call(backend, *arrays):
    results = backend.run(tuple(np.asarray(array) for array in arrays))
    names = [tensor.name for tensor in backend.service.outputs]
    return dict(zip(names, results, strict=True))


def differences(run, x, step=1e-6):
    """Return the Jacobian of each row by central differences: [rows, outputs, inputs]."""
    columns = []
    for j in range(x.shape[1]):
        change = np.zeros_like(x)
        change[:, j] = step
        columns.append((run(x + change) - run(x - change)) / (2 * step))
    return np.stack(columns, -1)


WIDE = "wide", [("x", "float64", 3)], [("y", "float64", 5)]
NARROW = "narrow", [("x", "float64", 5)], [("y", "float64", 2)]


@pytest.mark.parametrize("arguments", [WIDE, NARROW], ids=["wide", "narrow"])
def test_each_is_what_finite_differences_and_torch_func_say(tmp_path, arguments):
    random = np.random.default_rng(1)
    (_, _, n), (_, _, m) = arguments[1][0], arguments[2][0]
    x, v, t = (random.standard_normal((7, size)) for size in (n, m, n))
    jacobian = load(tmp_path, "jacobian", *arguments)
    found = call(jacobian, x)
    expected = differences(lambda x: call(jacobian, x)["y"], x)
    assert found["dy_dx"].shape == (7, m, n)
    np.testing.assert_allclose(found["dy_dx"], expected, rtol=1e-7, atol=1e-8)
    module = jacobian.module.module
    exact = torch.vmap(torch.func.jacrev(module))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found["dy_dx"], exact, rtol=1e-13, atol=1e-15)
    vjp = call(load(tmp_path, "vjp", *arguments), x, v)
    np.testing.assert_allclose(vjp["vjp_x"], np.einsum("ri,rij->rj", v, exact), atol=1e-14)
    jvp = call(load(tmp_path, "jvp", *arguments), x, t)
    np.testing.assert_allclose(jvp["jvp_y"], np.einsum("rij,rj->ri", exact, t), atol=1e-14)
    for one in (vjp, jvp):
        np.testing.assert_array_equal(one["y"], found["y"])


MIXED = (
    "Mixed",
    [("x", "float64", 3), ("phase", "int64"), ("p", "float64", 2, 2)],
    [("y", "float64"), ("label", "int64"), ("z", "float64", 2, 2)],
)


def test_integers_have_no_derivatives_and_blocks_have_both_shapes(tmp_path):
    backend = load(tmp_path, "jacobian", *MIXED)
    tensors = {tensor.name: tensor.shape for tensor in backend.service.outputs[3:]}
    assert tensors == {
        "dy_dx": (-1, 3),
        "dy_dp": (-1, 2, 2),
        "dz_dx": (-1, 2, 2, 3),
        "dz_dp": (-1, 2, 2, 2, 2),
    }
    random = np.random.default_rng(2)
    x, p, phase = random.random((4, 3)), random.random((4, 2, 2)), np.arange(4)
    found = call(backend, x, phase, p)
    scale = p[:, 0, 0] * phase
    np.testing.assert_allclose(found["dy_dx"], np.cos(x) * scale[:, None], atol=1e-14)
    only = np.zeros((4, 2, 2))
    only[:, 0, 0] = np.sin(x).sum(1) * phase
    np.testing.assert_allclose(found["dy_dp"], only, atol=1e-14)
    np.testing.assert_allclose(found["dz_dx"][..., 0], 2 * p * x[:, :1, None], atol=1e-14)
    assert not found["dz_dx"][..., 1:].any()
    unit = np.einsum("ik,jl->ijkl", np.eye(2), np.eye(2))
    expected = unit * x[:, 0].reshape(-1, 1, 1, 1, 1) ** 2
    np.testing.assert_allclose(found["dz_dp"], expected, atol=1e-14)
    vjp = load(tmp_path, "vjp", *MIXED)
    assert [one.name for one in vjp.service.inputs[3:]] == ["vector_y", "vector_z"]
    vectors = random.random(4), random.random((4, 2, 2))
    product = call(vjp, x, phase, p, *vectors)["vjp_x"]
    by_hand = np.einsum("r,rk->rk", vectors[0], found["dy_dx"])
    by_hand += np.einsum("rij,rijk->rk", vectors[1], found["dz_dx"])
    np.testing.assert_allclose(product, by_hand, atol=1e-14)


def test_a_float32_module_serves_float64_arrays(tmp_path):
    keys = {"dtype": "float32", "options": {"arguments": {}}}
    backend = load(tmp_path, "vjp", *WIDE, **keys)
    x, v = np.ones((2, 3)), np.ones((2, 5))
    product = call(backend, x, v)["vjp_x"]
    expected = torch.func.vjp(backend.module.module, torch.ones(2, 3))[1](torch.ones(2, 5))[0]
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("times", [1, 2])  # rows of the Jacobian, or columns, are fewer
def test_operations_that_torch_cannot_batch_run_one_by_one(tmp_path, times):
    signature = "Own", [("x", "float64", 2)], [("y", "float64", 2 * times)]
    backend = load(tmp_path, "jacobian", *signature, options={"arguments": {"times": times}})
    assert not backend.module._batched
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    one = np.einsum("ri,ij->rij", 3 * x**2, np.eye(2))
    np.testing.assert_allclose(call(backend, x)["dy_dx"], np.concatenate([one] * times, 1))


@pytest.mark.parametrize("model", ["Own", "Partly"])
def test_a_backward_that_hides_a_part_of_the_product_is_refused(tmp_path, model):
    with pytest.raises(ModelError, match="a backward function of its own"):
        load(tmp_path, "jvp", model, [("x", "float64", 2)], [("y", "float64", 2)])


def test_products_that_are_not_finite_are_not_taken_for_checked(tmp_path):
    signature = "Partly", [("x", "float64", 2)], [("y", "float64", 2)]
    backend = load(tmp_path, "jvp", *signature, warmup=False)
    for value in [np.nan] * CALLS + [0.5]:
        x = np.full((1, 2), value)
        with nullcontext() if np.isnan(value) else pytest.raises(ModelError, match="of its own"):
            backend.run((x, x))


@pytest.mark.parametrize("kind", ["vjp", "jvp", "jacobian"])
@pytest.mark.parametrize("model", ["Free", "Copied"])
def test_what_torch_cannot_follow_is_refused(tmp_path, model, kind):
    signature = model, [("x", "float32", 2)], [("y", "float32", 2)]
    with pytest.raises(ModelError, match="output 'y': torch cannot follow"):
        load(tmp_path, kind, *signature)


def test_rows_that_depend_on_each_other_have_products_but_no_jacobian(tmp_path):
    signature = "Coupled", [("x", "float64", 2)], [("y", "float64", 2)]
    with pytest.raises(ModelError, match=r"service\.net\.derivatives: .* independent"):
        load(tmp_path, "jacobian", *signature)
    vjp = load(tmp_path, "vjp", *signature)
    assert vjp.together
    x, v = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 0.5], [2.0, 4.0]])
    expected = v * x.sum(0) + (v * x).sum(0)  # of the whole request
    np.testing.assert_allclose(call(vjp, x, v)["vjp_x"], expected)


def test_a_constant_jacobian_is_of_independent_rows(tmp_path):
    signature = "Linear", [("x", "float32", 2)], [("y", "float32", 2)]
    found = call(load(tmp_path, "jacobian", *signature), np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(found["dy_dx"], np.stack([3 * np.eye(2)] * 2))


@pytest.mark.parametrize("kind", ["vjp", "jvp", "jacobian"])
def test_files_of_torch_are_differentiated_too(tmp_path, kind):
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    rows = ({0: torch.export.Dim.DYNAMIC},)
    example = (torch.ones(3, 2),)
    torch.export.save(torch.export.export(net, example, dynamic_shapes=rows), tmp_path / "a.pt2")
    torch.jit.script(net).save(tmp_path / "b.pt")
    x = torch.tensor([[0.3, -0.2], [1.0, 0.4]])
    exact = torch.vmap(torch.func.jacrev(net))(x).detach().numpy()
    ones = () if kind == "jacobian" else (np.ones((2, 2), np.float32),)
    expected = {"vjp": exact.sum(1), "jvp": exact.sum(2), "jacobian": exact}[kind]
    for file in ("a.pt2", "b.pt"):
        signature = file, [("x", "float32", 2)], [("y", "float32", 2)]
        backend = load(tmp_path, kind, *signature)
        np.testing.assert_allclose(call(backend, x.numpy(), *ones)[names(kind)], expected, 1e-5)


def names(kind):
    return {"vjp": "vjp_x", "jvp": "jvp_y", "jacobian": "dy_dx"}[kind]


def test_the_rows_of_a_warmup_file_get_vectors_of_ones(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 3)))
    load(tmp_path, "vjp", *WIDE, warmup="rows.npz")


# ---- configuration


def test_the_ranks_of_a_service_serve_its_derivatives_too():
    tables = {"net": table(*WIDE, replicas=2, gpus=1), "other": table(*WIDE, kinds=["jvp"])}
    for one in tables.values():
        one |= {"options": {"compile": True, "weights": "w"}, "engine": "compiled"}
    config = Config.from_dict({"service": tables})
    groups = [[service.name for service in group.services] for group in config.groups]
    assert groups == [["net", "net.vjp", "net.jvp", "net.jacobian"], ["other", "other.jvp"]]
    assert [group.replicas for group in config.groups] == [2, 1]
    vjp = config.service["net.vjp"]
    assert (vjp.name, vjp.options, vjp.engine, vjp.gpus) == (
        "net.vjp",
        {"weights": "w"},
        "eager",
        0,
    )
    del tables["net"]["replicas"]
    pool = {"both": {"services": ["other", "net"]}}
    (group,) = Config.from_dict({"service": tables, "pool": pool}).groups
    assert [service.name for service in group.services][:3] == ["other", "other.jvp", "net"]
    assert all(".vjp" not in finding.key for finding in findings(config))


def test_batches_of_jacobians_are_as_small_as_needed():
    large = table("wide", [("x", "float32", 1000)], [("y", "float32", 1000)], max_batch_rows=4096)
    config = Config.from_dict({"service": {"net": large | {"warmup": [1, 4096]}}})
    jacobian = config.service["net.jacobian"]
    assert jacobian.max_batch_rows == 16 and jacobian.warmup == (1, 16)


REFUSED = {
    "unknown derivative 'hessian'": {"derivatives": ["hessian"]},
    "'vjp' is listed twice": {"derivatives": ["vjp", "vjp"]},
    "the backend 'onnx' has none": {"backend": "onnx"},
    "the backend 'echo' has none": {"backend": "echo", "outputs": []},
    "the backend 'python' has none": {"backend": "python"},
    "the backend 'm:Mine' has none": {"backend": "m:Mine"},
    "not possible with preprocess": {"preprocess": "m:f"},
    "not possible with tensor_parallel": {"backend": "deepspeed", "tensor_parallel": 2},
    'independent rows, and rows is "together"': {"rows": "together"},
    "'x' is complex64": {"inputs": [{"name": "x", "dtype": "complex64", "shape": [-1]}]},
    "none of the inputs has floating numbers: 'x' is int32": {
        "inputs": [{"name": "x", "dtype": "int32", "shape": [-1]}]
    },
    "'jvp' has 20 outputs, at most 16": {
        "outputs": [{"name": f"y{i}", "dtype": "float64", "shape": [-1]} for i in range(10)]
    },
    "two outputs 'dy_dx'": {
        "outputs": [{"name": name, "dtype": "float64", "shape": [-1]} for name in ("y", "dy_dx")]
    },
}


@pytest.mark.parametrize("text", REFUSED)
def test_impossible_derivatives_are_refused(text):
    with pytest.raises(ConfigError, match=r"service\.net\.derivatives: ") as caught:
        Config.from_dict({"service": {"net": table(*WIDE) | REFUSED[text]}})
    assert text in caught.value.text


def test_a_name_is_taken_once():
    tables = {"net": table(*WIDE), "net.jvp": table(*WIDE, kinds=[])}
    with pytest.raises(ConfigError, match=r"there is a service 'net\.jvp' already"):
        Config.from_dict({"service": tables})
    tables = {"n" * 60: table(*WIDE)}
    with pytest.raises(ConfigError, match="1 to 63 bytes"):
        Config.from_dict({"service": tables})


def test_adaptive_pools_have_no_derivatives():
    tables = {"net": table(*WIDE), "other": table(*WIDE, kinds=[])}
    pool = {"both": {"services": ["net", "other"], "loaded": 1, "ranks": 2}}
    with pytest.raises(ConfigError, match="'net' has derivatives, .* remove loaded"):
        Config.from_dict({"service": tables, "pool": pool})
