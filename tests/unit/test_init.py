"""`mpiserve init`: what it writes, and refuses. tests/launch/test_init.py runs it."""

import ast
import tomllib

import pytest
from typer.testing import CliRunner

from mpiserve.cli import app
from mpiserve.config import Config
from mpiserve.tools import init

TABLE = {"backend": "python", "model": "m.py:f"}
X = {"name": "x", "dtype": "float32", "shape": [-1, 3]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "physics.py").write_text("def closure(x): ...\n")
    return lambda *args, **how: CliRunner().invoke(app, ("init", *args), **how)


def wrong(result):
    assert result.exit_code == 2, result.output
    return result.stderr


def test_a_function_is_asked_for_its_signature_and_found_from_the_folder(run, tmp_path):
    answers = "physics.py:closure\nflux\nu float64 4 2, mask bool\nflux float64\n"
    assert run("--folder", "job", input=answers).exit_code == 0
    config = tomllib.loads((tmp_path / "job/coupling.toml").read_text())
    service = Config.from_dict(config, folder=tmp_path / "job").service["flux"]
    assert service.model == "../physics.py:closure"
    assert [(t.name, t.dtype, t.shape) for t in service.inputs] == [
        ("u", "float64", (-1, 4, 2)),
        ("mask", "bool", (-1,)),
    ]
    assert not (tmp_path / "job/model.py").exists()


def test_no_file_is_overwritten(run, tmp_path):
    (tmp_path / "simulate.py").write_text("mine")
    assert "simulate.py is there already" in wrong(run(input="\n\n"))
    assert not (tmp_path / "coupling.toml").exists()
    assert (tmp_path / "simulate.py").read_text() == "mine"


@pytest.mark.parametrize(
    "answers, text",
    [
        ("none.onnx\n\n", "none.onnx: no such file"),
        ("none.py:f\n\n", "none.py: no such file"),
        ("physics.py:closure\n\nx\ny float32\n", "'x': a tensor is name, dtype and the sizes"),
        ("physics.py:closure\n\nx float32 three\ny float32\n", "'x float32 three': a tensor is"),
        ("physics.py:closure\n\nx float23 3\ny float32\n", "unknown dtype 'float23'"),
    ],
)
def test_a_wrong_answer_is_an_error_and_writes_nothing(run, tmp_path, answers, text):
    assert text in wrong(run(input=answers))
    assert not (tmp_path / "coupling.toml").exists()


NAMES = ["x", "session", "class", "2nd", "heat flux"]


def test_the_script_has_a_variable_for_each_input_whatever_its_name():
    inputs = [X | {"name": name} for name in NAMES]
    inputs += [X | {"name": "b", "dtype": "bfloat16"}]
    table = TABLE | {"inputs": inputs, "outputs": [X | {"name": 'say "y"'}]}
    text = init.script(Config.from_dict({"service": {'a "service"': table}}).services[0])
    ast.parse(text)
    assert "service(x, input_1, input_2, input_3, heat_flux, b)" in text
    assert "import ml_dtypes" in text and "b = np.ones((4, 3), ml_dtypes.bfloat16)" in text


def test_a_service_without_rows_gets_whole_tensors():
    table = TABLE | {
        "rows": "none",
        "inputs": [X | {"shape": [2, 3]}],
        "outputs": [X | {"shape": []}],
    }
    assert "np.ones((2, 3), np.float32)" in init.script(
        Config.from_dict({"service": {"s": table}}).services[0]
    )
