"""The backend "onnx", on a network that is built here."""

import numpy as np
import onnx
import pytest
import torch
from language_models import onnx_file

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.errors import ArgumentError, ModelError

X = {"name": "x", "dtype": "float32", "shape": [-1, 3]}
Y = {"name": "y", "dtype": "float32", "shape": [-1, 2]}


def network():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx")
    onnx_file(path / "net.onnx", network())
    (path / "broken.onnx").write_bytes(b"nothing of this kind")
    return path


@pytest.fixture
def make(folder):
    def build(model="net.onnx", **table):
        table = {"backend": "onnx", "model": model, "inputs": [X], "outputs": [Y]} | table
        made = backends.create(
            Config.from_dict({"service": {"s": table}}, folder=folder).services[0]
        )
        made.load()
        return made

    return build


def rows(n):
    return np.random.default_rng(n).standard_normal((n, 3), dtype=np.float32)


@pytest.mark.parametrize("shape", [[-1, 3], [-1]])
def test_complex_tensors_are_refused_when_it_is_loaded(make, shape):
    text = "^'x' is complex64, and onnxruntime has no complex tensors: give both parts"
    with pytest.raises(ModelError, match=text):
        make(inputs=[X | {"dtype": "complex64", "shape": shape}])


def identity(path, dtype):
    """A file of a model that returns its input."""
    info, kind = onnx.helper.make_tensor_value_info, getattr(onnx.TensorProto, dtype)
    ends = [info(name, kind, ["rows", 3]) for name in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "same", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_unsigned_integers(make, folder, dtype):
    x = np.arange(6, dtype=dtype).reshape(2, 3) + np.iinfo(dtype).max // 2
    identity(folder / "same.onnx", dtype.upper())
    tensor = {"dtype": dtype, "shape": [-1, 3]}
    ends = {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
    backend = make("same.onnx", **ends)
    place = (np.zeros_like(x),)
    backend.run_batch((x,), place, print)
    np.testing.assert_array_equal(place[0], x)
    np.testing.assert_array_equal(backend.run((x,))[0], x)


DOUBLE = {"dtype": "float64", "convert": True}


def test_doubles_are_converted_for_a_network_of_floats_if_configured(make, folder):
    backend = make(inputs=[X | DOUBLE], outputs=[Y | DOUBLE])
    batch, place = rows(5).astype(np.float64) / 3, (np.zeros((5, 2)),)
    expected = make().run((batch.astype(np.float32),))[0].astype(np.float64)
    assert backend.run_batch((batch,), place, print) is place
    np.testing.assert_array_equal(place[0], expected)
    np.testing.assert_array_equal(backend.run((batch,))[0], expected)
    batch[3, 1] = 1e39
    for run in (backend.run, lambda inputs: backend.run_batch(inputs, place, print)):
        with pytest.raises(ModelError, match=r"^input 'x': row 3 has 1e.39, and float32 ends at 3"):
            run((batch,))
    identity(folder / "narrow.onnx", "FLOAT")
    y = {"name": "y", "dtype": "float16", "shape": [-1, 3], "convert": True}
    half, x = make("narrow.onnx", outputs=[y]), np.full((2, 3), 7e4, np.float32)
    for run in (half.run, lambda x: half.run_batch(x, (np.zeros((2, 3), np.float16),), print)):
        with pytest.raises(
            ModelError, match=r"^output 'y': row 0 has 70000, and float16 ends at 6"
        ):
            run((x,))


@pytest.mark.parametrize("n", [1, 7, 300])
def test_it_equals_the_network_that_it_was_made_from(make, n):
    backend = make()
    assert backend.engine == "onnxruntime.InferenceSession"
    expected = network()(torch.from_numpy(rows(n))).detach().numpy()
    np.testing.assert_allclose(backend.run((rows(n),))[0], expected, atol=1e-6)
    place = (np.zeros((n, 2), np.float32),)
    assert backend.run_batch((rows(n),), place, print) is place
    np.testing.assert_allclose(place[0], expected, atol=1e-6)


MISTAKES = [
    ({"model": "none.onnx"}, "none.onnx: no such file"),
    ({"model": "broken.onnx"}, "INVALID_PROTOBUF|Protobuf"),
    ({"inputs": [X | {"name": "z"}]}, "the model has no input 'z'; it has x"),
    ({"inputs": [X, X | {"name": "z"}]}, "the model has no input 'z'; it has x"),
    ({"outputs": [Y | {"name": "z"}]}, "the model has no output 'z'; it has y"),
    ({"inputs": [X | {"shape": [-1, 4]}]}, r"input 'x': the model has float32 \[-1, 3\], the sig"),
    ({"outputs": [Y | {"shape": [-1]}]}, r"output 'y': .* the signature says float32 \[-1\]"),
    ({"outputs": [Y | {"dtype": "float64"}]}, r"output 'y': .* says float64 .*convert = true at"),
    ({"outputs": [Y | {"dtype": "int32"}]}, r"output 'y': .* converts only floats: preprocess"),
]


@pytest.mark.parametrize(("table", "text"), MISTAKES)
def test_a_model_that_does_not_fit_is_named(make, table, text):
    with pytest.raises(Exception, match=text):
        make(**table)


def test_an_input_that_the_signature_lacks_is_named(make, folder):
    info = onnx.helper.make_tensor_value_info
    ends = [info(name, onnx.TensorProto.FLOAT, ["rows", 3]) for name in ("x", "z", "y")]
    node = onnx.helper.make_node("Add", ["x", "z"], ["y"])
    graph = onnx.helper.make_graph([node], "sum", ends[:2], ends[2:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "2.onnx")
    with pytest.raises(ModelError, match="the model also needs the input 'z'"):
        make("2.onnx", outputs=[X | {"name": "y"}])


def test_a_provider_that_is_not_there_is_named(make):
    text = "options.providers: no 'TensorrtExecutionProvider' here; use one of .*CPUExecution"
    with pytest.raises(ArgumentError, match=text):
        make(options={"providers": ["TensorrtExecutionProvider", "CPUExecutionProvider"]})
    options = {"providers": ["CPUExecutionProvider"]}
    options["provider_options"] = {"CPUExecutionProvider": {"no_such_key": "1"}}
    assert make(options=options).run((rows(2),))


def test_a_batch_in_the_same_memory_is_computed_anew(make):
    backend, room = make(), np.zeros((2, 40), np.float32)
    batches = [
        ((row[:12].reshape(4, 3),), (row[12:20].reshape(4, 2),)) for row in (room[0], room[1])
    ]
    for seed in range(3):
        for i, (inputs, outputs) in enumerate(batches):
            inputs[0][:] = np.random.default_rng(10 * seed + i).standard_normal((4, 3))
            assert backend.run_batch(inputs, outputs, lambda _: None) is outputs
            np.testing.assert_array_equal(outputs[0], backend.run(inputs)[0])
    assert len(backend._known) == 2
    other = (np.empty((4, 2), np.float32),)
    backend.run_batch(batches[0][0], other, lambda _: None)
    np.testing.assert_array_equal(other[0], batches[0][1][0])
