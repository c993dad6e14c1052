import subprocess
import sys

import pytest

from mpiserve.config import Config
from mpiserve.launch.static_check import findings, unspared

MODELS = """\
import torch
from mpiserve import Backend

raise SystemExit("check does not run it")

def twice(x, factor=2): pass
def of_clients(x, clients, scale=1): pass
def anything(*x, **options): pass
async def later(x): pass
class Table:
    def __init__(self, path): pass
    def __call__(self, x): pass
class Deaf:
    pass
class Own(Backend):
    pass
def build(width, depth=2): pass
"""
IO = [{"name": "x", "dtype": "float32", "shape": [-1, 3]}]
TOKENS = [{"name": "tokens", "dtype": "int64", "shape": [-1, 8]}]


@pytest.fixture
def found(tmp_path):
    """What is found in a service; its models.py is beside the configuration."""
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "w.safetensors").write_bytes(b"")
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "folder").mkdir()

    def of(**table):
        base = {"backend": "python", "model": "models:twice", "inputs": IO, "outputs": IO}
        config = Config.from_dict({"service": {"s": base | table}}, folder=tmp_path)
        return [f"{finding.key}: {finding.text}" for finding in findings(config) if finding.sure]

    return of


RIGHT = [
    {},
    {"model": "./models.py:twice"},
    {"options": {"factor": 3}},
    {"model": "models:of_clients", "options": {"scale": 3}},
    {"model": "models:anything", "options": {"whatever": 3}},
    {"model": "models:Table", "options": {"path": "x"}},
    {"backend": "models:Own", "model": None, "options": {"of": "its own"}},
    {"backend": "./models.py:Own", "model": "any thing"},
    {"backend": "torch", "model": "models:build", "options": {"arguments": {"width": 3}}},
    {"backend": "torch", "model": "torch.nn:Linear"}
    | {"options": {"arguments": {"in_features": 3, "out_features": 3}}},
    {"backend": "onnx", "model": "model.onnx", "options": {"providers": []}},
    {"model": "models:{version}", "version": "twice"},
    {"preprocess": "models:twice", "postprocess": "models.py:twice"},
]


@pytest.mark.parametrize("table", RIGHT, ids=str)
def test_what_is_right_is_not_complained_of(found, table):
    assert found(**table) == []


FILE = {"backend": "torch", "model": "model.onnx"}
EMBEDS = {"backend": "torch", "model": "folder", "task": "embed"}
SHARDED = {"backend": "deepspeed"}
OTHERS = {"uncertainty": {"method": "ensemble", "limit": 1.0, "weights": ["none.safetensors"]}}
TRAINED = {"uncertainty": {"method": "distance", "limit": 1.0, "data": "none.npz"}}
BUILT = {"backend": "torch", "model": "models:build"}
WRONG = [
    ({"model": "model:twice"}, "service.s.model: 'model:twice': no module 'model' in"),
    ({"model": "models:twiec"}, "'models:twiec': the module has no 'twiec' (did you mean 'twice'"),
    ({"model": "./model.py:twice"}, "model.py: no such file"),
    ({"model": "twice"}, "must be 'module:callable', got 'twice'"),
    ({"model": "models:later"}, "'later' is async"),
    ({"model": "models:Deaf"}, "objects of 'Deaf' cannot be called"),
    ({"options": {"fatcor": 3}}, "options.fatcor: 'twice' has no such argument (did you mean 'fac"),
    ({"options": {"x": 3}}, "options: 'twice', called with 1 array(s): multiple values for arg"),
    ({"inputs": [*IO, *TOKENS, *IO[:0]], "options": {"factor": 1}}, "multiple values for argument"),
    ({"model": "models:Table"}, "options: 'Table': missing a required argument: 'path'"),
    ({"model": "models:{version}", "version": "thrice"}, "the module has no 'thrice'"),
    ({"backend": "models:Nobody", "model": None}, "service.s.backend: 'models:Nobody': the module"),
    ({"backend": "models:Deaf", "model": None}, "is not a subclass of mpiserve.Backend"),
    ({"backend": "models:twice", "model": None}, "is not a subclass of mpiserve.Backend"),
    ({"preprocess": "models:befoore"}, "service.s.preprocess: 'models:befoore': the module has no"),
    ({"postprocess": "nowhere:f"}, "service.s.postprocess: 'nowhere:f': no module 'nowhere'"),
    ({"preprocess": "models:build", "inputs": [*IO, *TOKENS, IO[0] | {"name": "z"}]}, "too many"),
    ({"backend": "echo", "model": None, "options": {"a": 1}}, "options.a: unknown key (there are"),
    ({"backend": "onnx", "model": "mdl.onnx"}, "mdl.onnx: no such file"),
    ({"backend": "onnx", "model": "model.onnx", "options": {"provider": []}}, "mean 'providers'?"),
    (FILE | {"options": {"compil": True}}, "options.compil: unknown key (did you mean 'compile'?)"),
    (FILE | {"options": {"arguments": {}}}, "options.arguments: needs a model 'module:callable'"),
    (BUILT, "options.arguments: 'build': missing a required argument: 'width'"),
    (
        BUILT | {"options": {"arguments": {"widthh": 1}}},
        "options.arguments.widthh: 'build' has no such",
    ),
    (BUILT | {"options": {"arguments": 3}}, "options.arguments: must be a table, got 3"),
    (BUILT | {"options": {"arguments": {"width": 1}, "weights": "no"}}, "no: no such file"),
    (BUILT | OTHERS, "service.s.uncertainty.weights: "),
    (TRAINED, "none.npz: no such file"),
    ({"backend": "torch", "model": "folder"}, "folder is a directory: set task ="),
    ({"backend": "torch", "model": "folder", "task": "embed", "inputs": TOKENS}, "no config.json"),
    ({"backend": "deepspeed", "model": "gone", "task": "embed"}, "gone: no such directory"),
    ({"backend": "deepspeed", "model": "mo dels:build"}, "a callable is named 'module:callable'"),
    (EMBEDS | {"inputs": IO}, "service.s.inputs: task 'embed' has no input 'x' (one of: text, tok"),
    (EMBEDS | {"inputs": [TOKENS[0], TOKENS[0] | {"name": "text"}]}, "and not both"),
    (BUILT | SHARDED | {"options": {"init_inference": {"dtype": 1}}}, "set dtype of the service"),
    (BUILT | SHARDED | {"options": {"injection_policy": {"models:Blokk": []}}}, "has no 'Blokk'"),
    (BUILT | SHARDED | {"options": {"injection_policy": {"Block": []}}}, "must be 'module:Class'"),
    (
        {"backend": "deepspeed", "model": "folder", "task": "embed", "options": {"poling": "mean"}},
        "options.poling: unknown key (did you mean 'pooling'?)",
    ),
]


@pytest.mark.parametrize(("table", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_is_not_there_is_named_with_its_key(found, table, text):
    said = found(**table)
    assert any(text in line for line in said), said
    assert all(line.startswith("service.s.") for line in said)


def test_what_may_not_work_is_a_warning(tmp_path):
    (tmp_path / "m.py").write_text("def __getattr__(name): pass\n")
    table = {"backend": "python", "model": "m:f", "inputs": IO, "outputs": IO, "threads": 1024}
    config = Config.from_dict({"service": {"s": table, "S": table}}, folder=tmp_path)
    told = {finding.key: finding.sure for finding in findings(config)}
    assert told == dict.fromkeys(
        ["service.s.model", "service.s.threads", "service.S.model", "service.S.threads"]
        + ["service.S"],
        False,
    )


def test_services_that_no_spare_can_replace_are_named(tmp_path):
    one = {"backend": "echo", "inputs": IO, "outputs": IO}
    several = {"inputs": IO, "outputs": IO, "backend": "models:Own", "tensor_parallel": 2}
    tables = {"service": {"one": one, "several": several, "first": one, "second": one}}
    tables |= {"pool": {"p": {"services": ["first", "second"], "loaded": 1, "ranks": 2}}}
    assert not unspared(Config.from_dict(tables, folder=tmp_path))
    found = unspared(Config.from_dict(tables | {"partition": {"spares": 1}}, folder=tmp_path))
    assert [finding.key for finding in found] == ["partition.spares"] * 2
    assert not any(finding.sure for finding in found)
    assert "replica of 'several', which has 2 ranks (tensor_parallel), as" in found[0].text
    assert "replica of 'first' + 'second', which share an adaptive pool" in found[1].text


def test_options_are_known_without_the_libraries_of_the_models(tmp_path):
    tables = [
        f"[service.{name}]\nbackend = '{backend}'\nmodel = 'm.onnx'\n"
        "options = { compil = true }\n"
        "inputs = [{ name = 'x', dtype = 'float32', shape = [-1] }]\n"
        "outputs = [{ name = 'x', dtype = 'float32', shape = [-1] }]\n"
        for name, backend in (("a", "deepspeed"), ("b", "torch"), ("c", "onnx"))
    ]
    (tmp_path / "c.toml").write_text("".join(tables))
    code = (
        "import sys; from mpiserve import Backend; from mpiserve.config import Config;"
        "from mpiserve.launch.static_check import findings;"
        "print(len(findings(Config.load('c.toml'))));"
        "print(*sorted({'torch', 'deepspeed', 'onnxruntime', 'mpi4py.MPI'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "6\n\n", done.stderr
