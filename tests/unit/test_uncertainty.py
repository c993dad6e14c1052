"""The table `[service.NAME.uncertainty]`, the distance to training data, the ensemble."""

import numpy as np
import pytest

from mpiserve import backends
from mpiserve.backends.distance import Distance, flat, training_rows
from mpiserve.config import Config
from mpiserve.errors import ConfigError, ModelError

ENSEMBLE = {"method": "ensemble", "limit": 0.1, "weights": ["1.safetensors", "2.safetensors"]}
DISTANCE = {"method": "distance", "limit": 2.0, "data": "train.npz"}
MODEL = {"method": "model", "limit": 0.1}


def table(uncertainty, **settings):
    x, y = (
        {"name": name, "dtype": "float32", "shape": [-1, n]} for name, n in (("x", 2), ("y", 3))
    )
    service = {"backend": "torch", "model": "nets:build", "inputs": [x], "outputs": [y]}
    return service | {"uncertainty": uncertainty} | settings


def service_of(folder, uncertainty, **settings):
    data = {"service": {"net": table(uncertainty, **settings)}}
    return Config.from_dict(data, folder=folder).services[0]


def test_the_table_that_is_served_has_one_more_output(tmp_path):
    service = service_of(tmp_path, MODEL)
    assert [t.name for t in service.outputs] == ["y"], "as the file says"
    served = service.of_version()
    last = served.outputs[-1]
    assert (last.name, last.dtype, last.shape, last.max) == ("uncertainty", "float32", (-1,), 0.1)
    assert served.of_version().outputs == served.outputs
    versions = {"options": {"weights": "{version}.0"}, "version": "a"}
    names = {"weights": ["{version}.1"]}
    other = service_of(tmp_path, ENSEMBLE | names, **versions).of_version("b")
    assert other.uncertainty.weights == ("b.1",) and other.options == {"weights": "b.0"}


@pytest.mark.parametrize(
    ("uncertainty", "settings", "text"),
    [
        (MODEL | {"limit": 0}, {}, "limit"),
        (MODEL | {"data": "a.npz"}, {}, "data is for method = 'distance', not 'model'"),
        (ENSEMBLE | {"weights": []}, {}, "weights is missing"),
        (ENSEMBLE | {"scales": {"z": 1.0}}, {}, "no output 'z'"),
        (ENSEMBLE, {"backend": "python"}, "the backend 'python' has no network"),
        (ENSEMBLE, {"model": "net.pt2"}, "module:callable"),
        (ENSEMBLE, {"derivatives": ["vjp"]}, "not with derivatives"),
        (ENSEMBLE | {"weights": ["{version}"]}, {}, "says {version}, which"),
        (
            ENSEMBLE | {"weights": ["{version}.1", "2.safetensors"]},
            {"options": {"weights": "{version}.0"}, "version": "a"},
            "'2.safetensors' must say {version}, too",
        ),
        (ENSEMBLE, {"options": {"weights": "2.safetensors"}}, "'2.safetensors' is there twice"),
        (ENSEMBLE, {"remote": {"model": "net"}}, "not with this uncertainty"),
        (MODEL, {"derivatives": ["vjp"]}, "not with derivatives"),
        (DISTANCE, {"engine": "compiled"}, "distances are found in Python"),
        ({"method": "distance", "limit": 1.0}, {}, "data is missing"),
        (
            MODEL,
            {"outputs": [{"name": "y", "dtype": "int8", "shape": [-1, -1], "max_shape": [-1, 9]}]},
            "free dimensions",
        ),
        *[
            (
                MODEL,
                {key: [{"name": "uncertainty", "dtype": "float32", "shape": [-1]}]}
                | {"postprocess": "nets:after"},
                "rename it",
            )
            for key in ("outputs", "model_outputs")
        ],
    ],
)
def test_what_no_service_can_have_is_refused(tmp_path, uncertainty, settings, text):
    with pytest.raises(ConfigError, match=text):
        service_of(tmp_path, uncertainty, **settings)


def test_distances_are_1_at_the_edge_of_the_training_data():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 3)) * [1, 100, 0.01]
    distance = Distance(rows, 5)
    inside = distance(rng.normal(size=(500, 3)) * [1, 100, 0.01])
    assert np.mean(inside <= 1) > 0.95 and inside.dtype == np.float32
    assert distance(np.array([[30.0, 0, 0], [0, 3000, 0], [0, 0, 0.3]])).min() > 10
    assert np.isnan(distance(np.array([[np.nan, 0, 0], [np.inf, 0, 0]]))).all()
    nearest = np.sort(np.linalg.norm((rows - rows[7]) / rows.std(0), axis=1))[:5].mean()
    far = np.sort(np.linalg.norm((rows - 9) / rows.std(0), axis=1))[:5].mean()
    found = distance(np.array([rows[7], [9, 9, 9]]))
    np.testing.assert_allclose(found[1] / found[0], far / nearest, rtol=1e-5)


def test_distances_of_numbers_far_from_0_are_as_near_to_it():
    rows = np.random.default_rng(0).normal(size=(500, 20))
    near, far = (Distance(rows + at, 5)(rows[:50] * 1.1 + at) for at in (0, 1e8))
    np.testing.assert_allclose(near, far, rtol=1e-4)


def test_a_value_that_is_the_same_everywhere_is_as_near_in_another_precision(tmp_path):
    rows = np.random.default_rng(0).random((500, 2))
    rows[:, 1] = 0.21  # the mean of 500 is another number
    np.savez(tmp_path / "train.npz", x=rows)
    service = service_of(tmp_path, DISTANCE | {"data": "train.npz"}).of_version()
    read = training_rows(service)
    distance = Distance(read, 5)
    assert (distance(flat([rows.astype(np.float32)], 500)) <= 1.5).all()
    assert distance(np.array([[0.5, 5.21]])).max() > 5


def test_a_complex_number_is_far_by_either_part():
    a, b = np.random.default_rng(0).normal(size=(2, 500, 1))
    distance = Distance(flat([a + 1j * b], 500), 5)
    assert (distance(flat([np.array([[9], [9j], [0]], np.complex64)], 3)) > 1).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.zeros((5, 2)), "5 training rows are too few for 5 neighbours"),
        (np.zeros((50, 2)), "many copies"),
        (np.full((50, 2), np.nan), "not finite"),
    ],
)
def test_training_data_of_which_nothing_can_be_told(rows, text):
    with pytest.raises(ModelError, match=text):
        Distance(rows, 5)


def test_training_data_that_do_not_fit_are_named(tmp_path):
    service = service_of(tmp_path, DISTANCE, backend="python").of_version()
    (tmp_path / "nets.py").write_text("def build(x):\n    return x\n")
    for arrays, text in (({"z": np.ones((9, 2))}, "no array 'x'"), ({"x": np.ones(9)}, "of rows")):
        np.savez(tmp_path / "train.npz", **arrays)
        with pytest.raises(ModelError, match=text):
            backends.create(service).load()
    (tmp_path / "train.npz").write_text("nothing")
    with pytest.raises(ModelError, match="no training data"):
        backends.create(service).load()


NETS = """\
from torch import nn


def build():
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
"""


@pytest.mark.parametrize("postprocess", [None, "nets:after"])
def test_an_ensemble_answers_with_the_mean_and_the_spread_of_its_networks(tmp_path, postprocess):
    import torch
    from safetensors.torch import save_file
    from torch import nn

    (tmp_path / "nets.py").write_text(NETS + "\n\ndef after(y):\n    return {'y': 10 * y}\n")
    x, answers = np.random.default_rng(0).random((5, 2), np.float32), []
    for seed in range(3):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval()
        save_file(net.state_dict(), tmp_path / f"{seed}.safetensors")
        answers.append(net(torch.from_numpy(x)).detach().numpy())
    settings = {"options": {"weights": "0.safetensors"}}
    settings |= {"postprocess": postprocess} if postprocess else {}
    service = service_of(tmp_path, ENSEMBLE | {"scales": {"y": 2.0}}, **settings).of_version()
    backend = backends.create(service)
    backend.load()
    y, uncertainty = backend.run((x,))
    np.testing.assert_allclose(y, (10 if postprocess else 1) * np.mean(answers, 0), rtol=1e-4)
    expected = np.std(answers, 0, ddof=1).max(1) / 2
    np.testing.assert_allclose(uncertainty, expected, rtol=1e-4)


FAR = """\
import torch


class Far(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return 1e6 * x + self.shift


build = Far
"""


def test_small_differences_of_large_numbers_count(tmp_path):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "far.py").write_text(FAR)
    for i, shift in enumerate((0.0, 1e-3, 2e-3)):
        weights = {"shift": torch.tensor([shift], dtype=torch.float64)}
        save_file(weights, tmp_path / f"{i}.safetensors")
    for dtype in ("float64", "complex128"):
        x = {"name": "x", "dtype": dtype, "shape": [-1]}
        tensors = {"inputs": [x], "outputs": [x | {"name": "y"}]}
        settings = tensors | {"model": "far:build", "options": {"weights": "0.safetensors"}}
        backend = backends.create(service_of(tmp_path, ENSEMBLE, **settings).of_version())
        backend.load()
        y, uncertainty = backend.run((np.ones(4, dtype),))
        np.testing.assert_allclose(y, np.full(4, 1e6 + 1e-3), rtol=1e-15)
        np.testing.assert_allclose(uncertainty, np.full(4, 1e-3), rtol=1e-4)
