"""Services without inputs or outputs: what the file of the model says, and where it cannot."""

import json
import struct
import zipfile

import numpy as np
import onnx
import pytest
import torch
from model_files import ROWS, examples, export, info, trace, write_onnx
from onnx import TensorProto

from mpiserve import backends
from mpiserve.config import Config
from mpiserve.config.completion import origin
from mpiserve.errors import ConfigError

pytestmark = pytest.mark.timeout(120)  # torch.export is slow on a busy machine

X = {"name": "x", "dtype": "float32", "shape": [-1, 3]}
T = {"name": "t", "dtype": "float32", "shape": [-1]}
FLAME = {
    "inputs": [("x", "float32", (-1, 3)), ("t", "float32", (-1,))],
    "outputs": [("rate", "float32", (-1, 2)), ("heat", "float64", (-1,))],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signatures")
    export(folder / "flame.pt2")
    write_onnx(folder / "net.onnx")
    trace(folder / "flame.pt")
    (folder / "notes.txt").write_text("of no kind")
    return folder


@pytest.fixture
def service(folder):
    def of(model, **table):
        backend = "onnx" if model.endswith(".onnx") else "torch"
        table = {"backend": backend, "model": model} | table
        return Config.from_dict({"service": {"s": table}}, source="c", folder=folder).services[0]

    return of


def tensors(service, side):
    return [(t.name, t.dtype, t.shape) for t in getattr(service, side)]


def error(service, model, **table):
    with pytest.raises(ConfigError) as caught:
        service(model, **table)
    return caught.value.text


def test_a_program_of_torch_export_says_both(service):
    found = service("flame.pt2")
    assert {side: tensors(found, side) for side in FLAME} == FLAME
    assert found.completed_by == ("flame.pt2", ("inputs", "outputs"))
    assert origin(found) == (
        "service s: inputs x float32 [-1, 3], t float32 [-1]; "
        "outputs rate float32 [-1, 2], heat float64 [-1] (read from flame.pt2)"
    )


@pytest.mark.parametrize("model", ["flame.pt2", "net.onnx"])
def test_the_service_runs_as_the_file_says(service, model):
    backend = backends.create(service(model))
    backend.load()
    inputs = [np.ones((5, *t.shape[1:]), t.dtype) for t in backend.service.inputs]
    result = backend.run(tuple(inputs))
    assert [r.shape[1:] for r in result] == [t.shape[1:] for t in backend.service.outputs]
    assert all(len(r) == 5 for r in result)


def test_an_onnx_file_says_both_without_its_weights(service):
    found = service("net.onnx")
    assert tensors(found, "inputs") == [("x", "float32", (-1, 3))]
    assert tensors(found, "outputs") == [("y", "float32", (-1, 2))]
    given = [X | {"shape": [-1, 3]}]
    assert service("net.onnx", inputs=given).completed_by == ("net.onnx", ("outputs",))


def test_all_dtypes_of_onnx_are_those_of_the_package(service, folder):
    kinds = {"BFLOAT16": "bfloat16", "BOOL": "bool", "INT8": "int8", "UINT8": "uint8"}
    kinds |= {"DOUBLE": "float64", "FLOAT16": "float16", "INT16": "int16", "INT64": "int64"}
    names = list(kinds)
    inputs = [info(name, TensorProto.DataType.Value(name), ["n", 1]) for name in names]
    write_onnx(folder / "kinds.onnx", inputs)
    assert [t.dtype for t in service("kinds.onnx").inputs] == list(kinds.values())


def test_a_file_is_read_without_torch_and_onnxruntime(folder):
    import subprocess
    import sys

    code = (
        "import sys\nfrom mpiserve.config import Config\n"
        "from pathlib import Path\n"
        "tables = {'a': {'model': 'flame.pt2'}, 'b': {'model': 'net.onnx', 'backend': 'onnx'}}\n"
        f"c = Config.from_dict({{'service': tables}}, folder=Path({str(folder)!r}))\n"
        "assert all(s.inputs and s.outputs for s in c.services)\n"
        "print({'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


def test_the_file_is_that_of_the_version(service, folder):
    found = service("{version}.onnx", version="net")
    assert found.completed_by[0] == "net.onnx"
    assert "missing; none.onnx: no such file" in error(service, "{version}.onnx", version="none")


def test_the_file_says_nothing_about_what_functions_take_and_return(service):
    assert "service.s.inputs: missing" in error(service, "net.onnx", preprocess="m:f")
    found = service("net.onnx", preprocess="m:f", inputs=[T], model_inputs=[X])
    assert found.completed_by == ("net.onnx", ("outputs",))
    text = error(service, "net.onnx", preprocess="m:f", inputs=[X], model_inputs=[T])
    assert "the configuration has t, and net.onnx x" in text


@pytest.mark.parametrize(
    ("model", "table", "text"),
    [
        ("net.onnx", {"inputs": [T]}, "inputs: the configuration has t, and net.onnx x"),
        ("net.onnx", {"outputs": [T]}, "outputs: the configuration has t, and net.onnx y"),
        (
            "net.onnx",
            {"inputs": [X | {"dtype": "float64"}]},
            "'x': the configuration says float64 [-1, 3], and net.onnx float32 [rows, 3]",
        ),
        (
            "flame.pt2",
            {"inputs": [X | {"shape": [-1, 4]}, T]},
            "'x': the configuration says float32 [-1, 4], and flame.pt2 float32 [s",
        ),
        ("flame.pt2", {"inputs": [X]}, "the configuration has x, and flame.pt2 x, t: the numbers"),
        ("flame.pt2", {"inputs": [X, T | {"dtype": "int64"}]}, "'t': the configuration says int64"),
    ],
)
def test_what_contradicts_the_file_names_both(service, model, table, text):
    assert text in error(service, model, **table)


def test_torch_takes_other_names_and_converts_floats(service):
    given = [X | {"name": "state", "dtype": "float64"}, T | {"name": "temperature"}]
    assert service("flame.pt2", inputs=given).completed_by == ("flame.pt2", ("outputs",))


class Lists(torch.nn.Module):
    def forward(self, x, others):
        return x + others[0]


class Named(torch.nn.Module):
    def forward(self, x, *, t):
        return x + t


class Numbers(torch.nn.Module):
    def forward(self, x, n):
        return x * n


class Twice(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, x])


class Same(torch.nn.Module):
    def forward(self, x):
        return 2 * x


ONE = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (
            {"dynamic": ()},
            "missing; the input 'x' of p.pt2 is float32 [4, 3]: its first dimension is not dynamic,"
            " and must be, for it is the rows. Export the model again: torch.export.export(",
        ),
        (
            {"module": Same(), "args": (ONE,), "dynamic": ({1: ROWS},)},
            "its first dimension is not dynamic",
        ),
        (
            {"module": Same(), "args": (ONE,), "dynamic": ({0: ROWS, 1: ROWS},)},
            "is dynamic. Write inputs and outputs, with its number in its place",
        ),
        ({"module": Twice(), "args": (ONE,)}, "'cat' of p.pt2 is float32 [Mul(Integer(2), s"),
        (
            {"module": Lists(), "args": (ONE, [ONE]), "dynamic": ({0: ROWS}, [{0: ROWS}])},
            "arguments by keyword, lists of tensors, or constants: export a module",
        ),
        (
            {
                "module": Named(),
                "args": (ONE,),
                "kwargs": {"t": ONE},
                "dynamic": {"x": {0: ROWS}, "t": {0: ROWS}},
            },
            "arguments by keyword",
        ),
        (
            {"module": Numbers(), "args": (ONE, 3), "dynamic": ({0: ROWS}, None)},
            "lists of tensors, or constants",
        ),
    ],
)
def test_what_a_program_cannot_be_asked_with_is_refused(service, tmp_path, how, text):
    export(tmp_path / "p.pt2", **how)
    found = error(service, str(tmp_path / "p.pt2"), backend="torch").replace(f"{tmp_path}/", "")
    assert text in found and found.startswith("c: service.s.inputs: missing; ")


FLOAT = TensorProto.FLOAT
SEQUENCE = onnx.helper.make_value_info(
    "y",
    onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(FLOAT, ["n"])),
)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (
            ([info("x", FLOAT, [1, 3])], None),
            "'x' of m.onnx is float32 [1, 3]: its first dimension",
        ),
        ((None, [info("y", FLOAT, [])]), "'y' of m.onnx is float32 []: its first dimension is not"),
        ((None, [info("y", FLOAT, None)]), "float32 of unknown shape: write outputs"),
        ((None, [SEQUENCE]), "m.onnx: 'y' is a sequence or a map, not a tensor"),
        (([info("x", TensorProto.STRING, ["n"])], None), "is string [n]: requests have bool"),
        (([info("x", FLOAT, ["n", "wide"])], None), "'wide' is dynamic. Write inputs and outputs"),
        ((None, [info("y", FLOAT, ["2*n", 2])]), "its rows must be as many as those of the inputs"),
    ],
)
def test_what_onnx_has_and_requests_do_not_is_refused(service, folder, tensors, text):
    write_onnx(folder / "m.onnx", *tensors)
    assert text in error(service, "m.onnx")


def test_dimensions_without_a_name_are_dynamic(service, folder):
    write_onnx(folder / "m.onnx", [info("x", FLOAT, [None, 3])], [info("y", FLOAT, [None, 2])])
    assert tensors(service("m.onnx"), "inputs") == [("x", "float32", (-1, 3))]
    text = error(service, "m.onnx", inputs=[X | {"shape": [-1, 4]}])
    assert "'x': the configuration says float32 [-1, 4], and m.onnx float32 [?, 3]" in text


@pytest.mark.parametrize(
    ("model", "backend", "text"),
    [
        ("flame.pt", "torch", "flame.pt is TorchScript, which does not say its outputs: write"),
        ("flame.pt", "onnx", "flame.pt is TorchScript: for one set backend = 'deepspeed' or"),
        ("flame.pt2", "onnx", "flame.pt2 is a program of torch.export: for one set backend"),
        ("net.onnx", "torch", "net.onnx is ONNX: for one set backend = 'onnx'"),
        ("notes.txt", "torch", "notes.txt has no signature to read: write inputs and outputs"),
        ("none.pt2", "torch", "none.pt2: no such file or directory"),
        (".", "torch", ".: is a directory"),
        ("x" * 5000, "torch", "file name too long"),
        ("models:build", "torch", "service.s.inputs: missing"),
    ],
)
def test_other_files_say_what_to_write(service, model, backend, text):
    assert text in error(service, model, backend=backend)


def test_a_misspelt_key_is_named_first(service):
    assert "service.s.input: unknown key (did you mean 'inputs'?)" in error(
        service, "none.onnx", input=[X]
    )


def test_broken_files_are_errors_of_one_line(service, folder):
    """Cut and changed files: no other exception, and no wait."""
    data = (folder / "net.onnx").read_bytes()
    rng = np.random.default_rng(0)
    for n in range(400):
        part = bytearray(data[: rng.integers(len(data))] if n % 2 else data)
        for at in rng.integers(0, len(part), 3 if len(part) else 0):
            part[at] = rng.integers(256)
        (folder / "broken.onnx").write_bytes(part)
        try:
            service("broken.onnx")
        except ConfigError as found:
            assert "\n" not in found.text


@pytest.mark.parametrize(
    "program",
    [{}, [], {"graph_module": {}}, {"graph_module": None}, 3, "no JSON"],
    ids=str,
)
def test_a_program_of_another_format_is_named(service, folder, program):
    text = program if isinstance(program, str) else json.dumps(program)
    with zipfile.ZipFile(folder / "odd.pt2", "w") as archive:
        archive.writestr("odd/models/model.json", text)
    found = error(service, "odd.pt2")
    assert "odd.pt2 is a program of torch.export of another version" in found


def test_an_endless_length_is_no_model(service, folder):
    (folder / "huge.onnx").write_bytes(b"\x3a" + b"\xff" * 9 + b"\x01" + struct.pack("<q", 1))
    assert "has no signature" in error(service, "huge.onnx")


def test_a_file_that_is_cut_off_is_no_model(service, folder):
    (folder / "cut.onnx").write_bytes((folder / "net.onnx").read_bytes()[:-1])
    assert "has no signature" in error(service, "cut.onnx")


def test_examples_fit_the_file(service):
    assert [tuple(t.shape[1:]) for t in examples()] == [
        t.shape[1:] for t in service("flame.pt2").inputs
    ]
