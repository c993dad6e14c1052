"""`describe`: what it prints is a service that works, or one line that says what to do."""

import json
import os
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from model_files import Flame, export, info, trace, write_onnx
from onnx import TensorProto
from safetensors.torch import save_file
from typer.testing import CliRunner

from mpiserve import backends
from mpiserve.cli import app
from mpiserve.config import Config

pytestmark = pytest.mark.timeout(120)  # torch.export is slow on a busy machine


@pytest.fixture
def describe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(app, ("describe", *map(str, args)))


def wrong(result):
    """The one line of an error."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("mpiserve: ") and result.stderr.count("\n") == 1
    return result.stderr


def served(text, folder):
    """Load the service of a TOML text as it is, and run it on 3 and 5 rows."""
    service = Config.from_dict(tomllib.loads(text), folder=folder).services[0]
    backend = backends.create(service)
    backend.load()
    for rows in (3, 5):
        inputs = [np.ones((rows, *t.shape[1:]), t.dtype) for t in service.inputs]
        results = backend.run(tuple(inputs))
        for tensor, result in zip(service.outputs, results, strict=True):
            assert (result.dtype, result.shape) == (tensor.dtype, (rows, *tensor.shape[1:]))
    return service


MADE = {"net.onnx": write_onnx, "flame.pt2": export, "flame.pt": trace}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.filterwarnings("ignore")
def test_what_it_prints_works_as_it_is(describe, tmp_path, name):
    MADE[name](tmp_path / name)
    result = describe(name)
    assert result.exit_code == 0, result.output
    service = served(result.stdout, tmp_path)
    assert (service.name, service.model) == (name.split(".")[0], name)
    assert service.backend == ("onnx" if name == "net.onnx" else "deepspeed")
    assert service.max_batch_rows == 4096 and service.completed_by == ("", ())


def test_check_and_plan_say_what_was_read(describe, tmp_path):
    write_onnx(tmp_path / "net.onnx")
    table = '[service.net]\nbackend = "onnx"\nmodel = "net.onnx"\nmax_batch_rows = 4\n'
    (tmp_path / "c.toml").write_text(table)
    said = "net: inputs x float32 [-1, 3]; outputs y float32 [-1, 2] (read from net.onnx)\n"
    for words in (["check"], ["check", "--load"], ["plan", "-n", "4"]):
        result = CliRunner().invoke(app, [*words, "c.toml"])
        assert result.exit_code == 0 and result.stdout.count(said) == 1, result.output
    (tmp_path / "c.toml").write_text(describe("net.onnx").stdout)
    assert "read from" not in CliRunner().invoke(app, ["check", "c.toml"]).stdout


def test_the_text_is_that_of_a_person(describe, tmp_path):
    write_onnx(tmp_path / "net.onnx")
    assert describe("net.onnx").stdout == (
        '[service.net]\nbackend = "onnx"\nmodel = "net.onnx"\n'
        'inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]\n'
        'outputs = [{ name = "y", dtype = "float32", shape = [-1, 2] }]\n'
        "max_batch_rows = 4096\n"
    )


def test_names_and_json(describe, tmp_path):
    write_onnx(tmp_path / "my net (3).onnx")
    assert describe("my net (3).onnx").stdout.startswith("[service.my_net_3]\n")
    named = describe("my net (3).onnx", "--name", "die flöte").stdout
    assert list(tomllib.loads(named)["service"]) == ["die flöte"]
    tables = json.loads(describe("my net (3).onnx", "--json", "--name", "x").stdout)
    assert tables == tomllib.loads(describe("my net (3).onnx", "--name", "x").stdout)
    assert "must not have control characters" in wrong(
        describe("my net (3).onnx", "--name", "a\nb")
    )


def test_a_batch_of_wide_rows_fits_into_memory(describe, tmp_path):
    wide = [info("x", TensorProto.FLOAT, ["n", 1000, 1000])]
    write_onnx(tmp_path / "wide.onnx", wide, [info("y", TensorProto.FLOAT, ["n", 2])])
    assert tomllib.loads(describe("wide.onnx").stdout)["service"]["wide"]["max_batch_rows"] == 16


def test_the_rows_that_a_program_accepts_are_the_most(describe, tmp_path):
    rows = torch.export.Dim("rows", min=1, max=100)
    export(tmp_path / "few.pt2", dynamic=({0: rows}, {0: rows}))
    assert tomllib.loads(describe("few.pt2").stdout)["service"]["few"]["max_batch_rows"] == 100


class Fixed(torch.nn.Module):
    def forward(self, x):
        return x + torch.ones(4, 3)


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(0)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (Fixed(), "net.pt was traced with x float32 [4, 3], and fails on 2 rows of zeros"),
        (Mean(), "the output 'output' of net.pt is float32 [3]: its first dimension is not"),
    ],
    ids=["fixed", "mean"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_trace_that_does_not_accept_rows_is_refused(describe, tmp_path, module, text):
    trace(tmp_path / "net.pt", module, (torch.ones(4, 3),))
    assert text in wrong(describe("net.pt"))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_without_shapes_says_what_to_write(describe, tmp_path):
    torch.jit.script(torch.nn.Linear(3, 2)).save(str(tmp_path / "net.pt"))
    text = 'write yours, as in inputs = [{ name = "input", dtype = "float32", shape = [-1, 2] }]'
    assert text in wrong(describe("net.pt"))


def directory(path, kind, **facts):
    path.mkdir()
    known = {"architectures": [kind], "max_position_embeddings": 512} | facts
    (path / "config.json").write_text(json.dumps(known))


def test_a_directory_gets_a_task(describe, tmp_path):
    directory(tmp_path / "llama", "LlamaForCausalLM", max_position_embeddings=100)
    table = tomllib.loads(describe("llama/").stdout)["service"]["llama"]
    assert table["task"] == "generate"
    assert [t["shape"] for t in table["inputs"] + table["outputs"]] == [[-1, 50], [-1]] * 2
    directory(tmp_path / "bert", "BertModel", hidden_size=32)
    table = tomllib.loads(describe("bert").stdout)["service"]["bert"]
    assert table["task"] == "embed"
    assert table["outputs"] == [{"name": "vector", "dtype": "float32", "shape": [-1, 32]}]


def test_a_directory_works_as_it_is(describe, tmp_path):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, intermediate_size=16, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    service = served(describe("bert").stdout, tmp_path)
    assert service.outputs[0].shape == (-1, 16)


def weights(path):
    save_file(Flame().state_dict(), path)


def whole(path):
    torch.save(Flame(), path)


WRONG = [
    ("net.safetensors", weights, 'only weights. Write model = "module:callable" and options = {'),
    ("net.pth", whole, "net.pth is a pickle of "),
    ("net.onnx", lambda path: path.write_bytes(b"none of it"), "an unknown kind of file; a model"),
    ("net.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file, as Keras"),
    ("empty", lambda path: path.touch(), "empty is an empty file"),
    ("folder", lambda path: path.mkdir(), "is a directory without config.json"),
    ("bad", lambda path: directory(path, "BertModel"), "does not say the size of a vector"),
    ("none", lambda path: None, "none: no such file or directory"),
]


@pytest.mark.parametrize(("name", "make", "text"), WRONG, ids=[name for name, *_ in WRONG])
def test_other_files_are_named_in_one_line(describe, tmp_path, name, make, text):
    make(tmp_path / name)
    assert text in wrong(describe(name))


def test_a_config_that_is_none_is_named(describe, tmp_path):
    for i, text in enumerate(("{", "[]", "null", '{"architectures": 3}')):
        (tmp_path / f"d{i}").mkdir()
        (tmp_path / f"d{i}" / "config.json").write_text(text)
        assert f"d{i}/config.json is not that of a model" in wrong(describe(f"d{i}"))


def test_the_command_prints_nothing_else(tmp_path):
    export(tmp_path / "flame.pt2")
    trace(tmp_path / "flame.pt")
    for name in ("flame.pt2", "flame.pt"):
        command = [sys.executable, "-m", "mpiserve", "describe", name]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=100
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert tomllib.loads(done.stdout)
