"""Files that are models, and the errors and remedies for files that are not."""

import json
import pickle
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from language_models import onnx_file
from safetensors.torch import load_file, save_file, save_model

from mpiserve import backends
from mpiserve.backends import file_kinds
from mpiserve.config import Config
from mpiserve.errors import ModelError

MODELS = """
import torch
from torch import nn


def net(out=2):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, out))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def wrapped():
    return nn.DataParallel(net())


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.module(x))


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))


def on_meta():
    with torch.device("meta"):
        return net()
"""
X = {"name": "x", "dtype": "float32", "shape": [-1, 2]}
NET = 'model = "module:callable" and options = { weights = "net.safetensors" }'


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    (path / "file_models.py").write_text(MODELS)
    sys.path.insert(0, str(path))
    import file_models

    yield file_models
    sys.path.remove(str(path))
    del sys.modules["file_models"]


@pytest.fixture
def make(models, tmp_path):
    def build(model, weights=None, backend="torch", **table):
        table |= {"backend": backend, "model": model, "inputs": [X], "outputs": [X | {"name": "y"}]}
        if weights:
            table["options"] = {"weights": weights}
        service = Config.from_dict({"service": {"s": table}}, folder=tmp_path).services[0]
        made = backends.create(service)
        made.load()
        return made

    return build


def rows(n=3):
    return np.random.default_rng(n).standard_normal((n, 2), dtype=np.float32)


def alone(module, x):
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(x)).numpy()


def other(models, **arguments):
    """A module with other weights than the callable gives."""
    module = models.net(**arguments)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(1.0)
    return module


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x")


def write(path, models, kind):
    """Write a file that is no model, under the name of one."""
    module = models.net()
    state = module.state_dict()
    if kind == "state":
        torch.save(state, path)
    elif kind == "old state":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "whole":
        torch.save(module, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(module))
    elif kind == "bomb":
        torch.save(models.Bomb(), path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "keras":
        archive(path, "config.json", "model.weights.h5")
    elif kind == "zip":
        archive(path, "readme.txt")
    elif kind == "aotinductor":
        archive(path, "m/archive_format", "m/data/aotinductor/model/a.so")
    elif kind == "cut":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:700])
    else:
        starts = {"hdf5": b"\x89HDF\r\n\x1a\n0000", "empty": b"", "lfs": b"version https://git-lfs"}
        path.write_bytes(starts[kind])


SAID = {
    "state": "net.pt is a state_dict: only weights. Convert it: ",
    "old state": "net.pt is a state_dict: only weights. Convert it: ",
    "checkpoint": "net.pt is a checkpoint, with weights in 'state_dict'. Convert it: ",
    "whole": "net.pt is a pickle of torch.nn.modules.container.Sequential, which can run any code",
    "pickle": "net.pt is a pickle of torch.nn.modules.container.Sequential, which can run any code",
    "bomb": "net.pt is a pickle of __builtin__.exec, which can run any code",
    "tensor": "net.pt is a Tensor of torch.save, neither a module nor its weights",
    "safetensors": "net.pt is safetensors: only weights. Write ",
    "keras": "net.pt is a Keras file; convert it to ONNX",
    "hdf5": "net.pt is an HDF5 file, as Keras writes",
    "zip": "net.pt is a zip archive with readme.txt, not a model",
    "aotinductor": "net.pt is a package that AOTInductor compiled, for one machine",
    "cut": "net.pt is an archive that is cut off: copy or write it again",
    "empty": "net.pt is an empty file",
    "lfs": "net.pt is a pointer of Git LFS, without the file: run 'git lfs pull'",
}


@pytest.mark.parametrize("kind", SAID)
def test_a_file_that_is_no_model_is_named_and_not_unpickled(make, models, tmp_path, kind):
    write(tmp_path / "net.pt", models, kind)
    for backend in ("torch", "onnx"):
        with pytest.raises(ModelError) as caught:
            make("net.pt", backend=backend)
        assert str(caught.value).startswith(SAID[kind])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500  # as much as reaches the other side
        if kind in ("state", "old state", "checkpoint", "whole", "pickle"):
            assert NET in str(caught.value)


@pytest.mark.parametrize("kind", ["state", "checkpoint"])
def test_the_command_that_converts_weights_does(make, models, tmp_path, kind, monkeypatch):
    write(tmp_path / "net.pt", models, kind)
    command = file_kinds.describe(tmp_path / "net.pt").split("Convert it: ")[1].split(". Write")[0]
    monkeypatch.chdir(tmp_path)
    exec(command, {"torch": torch})
    assert load_file("net.safetensors").keys() == models.net().state_dict().keys()


def test_models_are_known_by_what_they_hold(make, models, tmp_path):
    x = torch.from_numpy(rows(4))
    torch.jit.save(torch.jit.script(models.net()), tmp_path / "script.pt2")
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(models.net(), (x,), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "program.pt")
    for name in ("script.pt2", "program.pt"):
        for n in (1, 7):
            (result,) = make(name).run((rows(n),))
            np.testing.assert_allclose(result, alone(models.net(), rows(n)), atol=1e-6)
        with pytest.raises(ModelError, match="for one set backend = 'deepspeed' or 'torch'"):
            make(name, backend="onnx")
    with pytest.raises(ModelError, match="is safetensors: only weights"):
        save_file(models.net().state_dict(), tmp_path / "net.safetensors")
        make("net.safetensors", backend="deepspeed")


def test_directories_are_named(make, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"^empty is a directory without config.json"):
        make("empty")
    (tmp_path / "empty/config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"^empty is a directory: set task = 'gen"):
        make("empty")
    (tmp_path / "empty/saved_model.pb").write_text("")
    with pytest.raises(ModelError, match=r"^empty is a SavedModel of TensorFlow"):
        make("empty")


@pytest.mark.parametrize(
    ("rows_of", "text"), [(None, "only 4 rows"), ({"max": 64}, "0 to 64"), ({"min": 3}, "3 to")]
)
def test_a_program_for_some_rows_alone_is_refused(make, models, tmp_path, rows_of, text):
    dynamic = rows_of and ({0: torch.export.Dim("rows", **rows_of)},)
    program = torch.export.export(
        models.net(), (torch.from_numpy(rows(4)),), dynamic_shapes=dynamic
    )
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=f"^net.pt2: exported for {text}.*dynamic_shapes="):
        make("net.pt2")
    if rows_of == {"max": 64}:
        assert make("net.pt2", max_batch_rows=64).run((rows(64),))[0].shape == (64, 2)


def test_a_program_has_the_dtype_of_its_export(make, models, tmp_path):
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    x = torch.from_numpy(rows(4))
    torch.export.save(
        torch.export.export(models.net(), (x,), dynamic_shapes=dynamic), tmp_path / "net.pt2"
    )
    make("net.pt2", dtype="float32")
    with pytest.raises(Exception, match=r"s\.dtype: net.pt2 computes in float32, as it was exp"):
        make("net.pt2", dtype="float64")


def test_onnx_for_some_rows_alone_is_refused(make, models, tmp_path):
    onnx_file(tmp_path / "net.onnx", models.net())
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "net.onnx")
    text = r"input 'x': the model has float32 \[4, 2\], .* exported for only 4 rows; .*dynamic_sh"
    with pytest.raises(ModelError, match=text):
        make("net.onnx", backend="onnx")
    with pytest.raises(ModelError, match="^net.onnx is named as an ONNX file; .*backend = 'onnx'"):
        make("net.onnx")


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_tied_weights_may_be_there_once(make, models, tmp_path, kind):
    module = models.Tied()
    save_model(module, tmp_path / "w.safetensors")
    assert len(load_file(tmp_path / "w.safetensors")) == 1
    (result,) = make("file_models:Tied", "w.safetensors", kind).run((rows(),))
    np.testing.assert_array_equal(result, alone(module, rows()))
    weight = module.a.weight.detach()
    save_file({"a.weight": weight, "b.weight": weight + 1}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="'a.weight' and 'b.weight' are one tensor in the module"):
        make("file_models:Tied", "w.safetensors", kind)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("model", ["net", "wrapped"])
def test_names_that_wrappers_made_longer_are_known(make, models, tmp_path, prefix, model):
    module = other(models)
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    (result,) = make(f"file_models:{model}", "w.safetensors").run((rows(),))
    np.testing.assert_array_equal(result, alone(module, rows()))


def test_what_torch_knows_of_older_names_is_known(make, models, tmp_path):
    module = models.Normed()
    state = {name: tensor for name, tensor in module.state_dict().items() if "batches" not in name}
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        state[f"module.{old}"] = state.pop(f"module.parametrizations.weight.{new}")
    save_file(state, tmp_path / "w.safetensors")
    (result,) = make("file_models:Normed", "w.safetensors").run((rows(),))
    np.testing.assert_array_equal(result, alone(module, rows()))
    del state["norm.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"it lacks 1 of its 8 tensors \('norm.weight'\)$"):
        make("file_models:Normed", "w.safetensors")


def test_weights_in_several_files_are_found_by_their_index(make, models, tmp_path):
    module = other(models)
    items = list(module.state_dict().items())
    save_file(dict(items[:2]), tmp_path / "1.safetensors")
    save_file(dict(items[2:]), tmp_path / "2.safetensors")
    places = {name: f"{1 + (i > 1)}.safetensors" for i, (name, _) in enumerate(items)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (result,) = make("file_models:net", index.name).run((rows(),))
    np.testing.assert_array_equal(result, alone(module, rows()))
    with pytest.raises(ModelError, match="^model.safetensors.index.json is an index of weights"):
        make(index.name)
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(ModelError, match="2.safetensors: no such file"):
        make("file_models:net", index.name)
    save_file(dict(items[:1]), tmp_path / "2.safetensors")
    with pytest.raises(ModelError, match="index.json: its files lack '2.weight', '2.bias'"):
        make("file_models:net", index.name)


WRONG = [
    (lambda s: {"0.weight": s["0.weight"]}, r"lacks 3 of its 4 tensors \('0.bias', '2.weight', '2"),
    (
        lambda s: s | {"extra": torch.ones(1)},
        r"it has 1 that the module does not have \('extra'\)$",
    ),
    (
        lambda s: {"model." + k: v for k, v in s.items()},
        r"Names differ by 'model.': save the st",
    ),
    (lambda s: s | {"2.bias": torch.zeros(3)}, r"'2.bias' is \[3\] in the file and \[2\] in the m"),
    (lambda s: s | {"2.bias": s["2.bias"].double()}, r"float64 in .*set dtype = 'float32'$"),
    (lambda s: s | {"2.bias": torch.zeros(2).cfloat()}, r"complex64 in .*make the dtypes the same"),
    (lambda s: s | {"2.bias": torch.zeros(2).long()}, r"int64 in the file and float32 .*same"),
]


@pytest.mark.parametrize(("change", "text"), WRONG)
def test_weights_that_do_not_fit_are_named(make, models, tmp_path, change, text):
    save_file(change(models.net().state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"^w.safetensors.*{text}") as caught:
        make("file_models:net", "w.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_weights_of_another_dtype_lose_nothing_in_silence(make, models, tmp_path, kind):
    module = other(models).double()
    module[2].bias.data += 1e-12
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    backend = make("file_models:net", "w.safetensors", kind, dtype="float64")
    expected = alone(module, rows().astype("float64")).astype("float32")
    np.testing.assert_array_equal(backend.run((rows(),))[0], expected)
    (result,) = make("file_models:net", "w.safetensors", kind, dtype="float32").run((rows(),))
    np.testing.assert_array_equal(result, alone(module.float(), rows()))
    save_file(other(models).half().state_dict(), tmp_path / "w.safetensors")  # which is wider here
    (result,) = make("file_models:net", "w.safetensors", kind).run((rows(),))
    np.testing.assert_array_equal(result, alone(other(models).half().float(), rows()))
    module[0].weight.data[0, 0] = 1e30
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"'0.weight' \(float32\) holds numbers beyond 6.6e.04"):
        make("file_models:net", "w.safetensors", kind, dtype="float16")


def test_weights_of_another_kind_of_file_are_named(make, models, tmp_path):
    write(tmp_path / "net.pt", models, "state")
    with pytest.raises(
        ModelError,
        match=r"^net.pt: options.weights must name a safetensors file: a state_dict: .*Conv",
    ):
        make("file_models:net", "net.pt")
    save_file(models.net().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-9])
    with pytest.raises(
        ModelError,
        match=r"^w.safetensors: options.weights must name a safetensors file: it is broken",
    ):
        make("file_models:net", "w.safetensors")
    with pytest.raises(ModelError, match="is a directory: options.weights names a file in it"):
        make("file_models:net", ".")
    with pytest.raises(ModelError, match="gone.safetensors: no such file"):
        make("file_models:net", "gone.safetensors")
    (tmp_path / "index.index.json").write_text("[]")
    with pytest.raises(ModelError, match="it has no 'weight_map'"):
        make("file_models:net", "index.index.json")


def test_a_module_without_values_is_refused(make, models, tmp_path):
    with pytest.raises(ModelError, match="'0.weight' has no values: it is on the device 'meta'"):
        make("file_models:on_meta")
    save_file(models.net().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="'0.weight' has no values: .* or of a lazy layer"):
        make("file_models:lazy")
    (result,) = make("file_models:lazy", "w.safetensors").run((rows(),))
    np.testing.assert_array_equal(result, alone(models.net(), rows()))
    with pytest.raises(ModelError, match="' of the module is on the device 'meta'"):
        make("file_models:on_meta", "w.safetensors")
