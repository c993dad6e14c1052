"""`convert`: a program of any rows with the results of the TorchScript file, or an error."""

import numpy as np
import pytest
import torch
from model_files import Flame, export, trace
from torch import nn
from typer.testing import CliRunner

from mpiserve import backends
from mpiserve.cli import app
from mpiserve.config import Config

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]
takes_long = pytest.mark.takes_long  # torch converts and exports for some seconds


class Convolution(nn.Module):
    """Layers that compute with sizes, which scripts often freeze."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x, scale):
        y = self.head(self.layers(x))
        return y * scale[:, None], y.view(x.shape[0], -1, 1).sum(1)


class Branch(nn.Module):
    """Which way it goes depends on the numbers."""

    def forward(self, x):
        return x * 2 if bool(x.sum() > 0) else x * 3


class Fixed(nn.Module):
    """Takes 4 rows."""

    def forward(self, x):
        return x + torch.ones(4, 2)


class Lookup(nn.Module):
    """Fails on the integers 1 of the comparison."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(1))

    def forward(self, x):
        return self.table[x]


class Infinite(nn.Module):
    """Some of its values are infinite, or no numbers, and the others are small."""

    def forward(self, x):
        return torch.where(x > 0, 1e-3 * x, torch.log(x) / 0)


def script(path, module):
    torch.manual_seed(5)
    torch.jit.script(module().eval()).save(str(path))
    return torch.jit.load(str(path))


@pytest.fixture
def convert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(app, ("convert", *map(str, args)))


def wrong(result):
    """The one line of an error."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("mpiserve: ") and result.stderr.count("\n") == 1
    return result.stderr


def served(folder, name, names):
    """Load a service that takes its inputs, of these names, and its outputs from the file."""
    table = {"backend": "torch", "model": name, "max_batch_rows": 64}
    service = Config.from_dict({"service": {"s": table}}, folder=folder).services[0]
    backend = backends.create(service)
    backend.load()
    assert [tensor.name for tensor in service.inputs] == names
    return lambda *x: [np.array(y) for y in backend.run(tuple(x))]


def check(folder, name, module, **inputs):
    model = served(folder, name, [*inputs])
    for rows in (1, 2, 5, 64):
        given = [x[:rows] for x in inputs.values()]
        right = module(*map(torch.from_numpy, given))
        for one, other in zip(model(*given), right, strict=True):
            np.testing.assert_allclose(one, other.detach().numpy(), 1e-5, 1e-6)


@takes_long
def test_a_script_of_several_tensors(convert, tmp_path):
    module = script(tmp_path / "net.pt", Convolution)
    result = convert("net.pt", "--inputs", "x float32 3 9 8, scale float32")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("wrote net.pt2: its results differ from those of net.pt by at")
    generator = np.random.default_rng(1)
    x, scale = (generator.standard_normal(shape, np.float32) for shape in ((64, 3, 9, 8), 64))
    check(tmp_path, "net.pt2", module, x=x, scale=scale)
    assert "is there already" in wrong(convert("net.pt", "--inputs", "x float32 3 9 8, s float32"))


@takes_long
def test_a_trace_says_its_inputs(convert, tmp_path):
    class Traced(nn.Module):
        def __init__(self):
            super().__init__()
            self.flame = Flame()

        def forward(self, x, t):
            found = self.flame(x, t)
            return found["rate"], found["heat"]

    module = Traced()
    trace(tmp_path / "flame.pt", module)
    result = convert("flame.pt", "--output", "other.pt2")
    assert result.exit_code == 0, result.output
    x = np.random.default_rng(2).standard_normal((64, 3), np.float32)
    check(tmp_path, "other.pt2", module, x=x, t=x[:, 0].copy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flame.pt", "other.pt2"]


@takes_long
def test_a_branch_goes_both_ways(convert, tmp_path):
    script(tmp_path / "branch.pt", Branch)
    result = convert("branch.pt", "--inputs", "x float32 2")
    assert result.exit_code == 0, result.output
    program = torch.export.load(tmp_path / "branch.pt2").module()
    for sign in (1, -1):
        x = torch.full((3, 2), float(sign))
        assert torch.equal(program(x), x * (2 if sign > 0 else 3))


@takes_long
def test_rows_that_are_not_free_are_refused(convert, tmp_path):
    script(tmp_path / "fixed.pt", Fixed)
    result = convert("fixed.pt", "--inputs", "x float32 2")
    assert "cannot convert it with free rows" in wrong(result)
    assert [path.name for path in tmp_path.iterdir()] == ["fixed.pt"]


@takes_long
def test_values_that_are_not_finite_are_compared(convert, tmp_path):
    script(tmp_path / "infinite.pt", Infinite)
    result = convert("infinite.pt", "--inputs", "x float32 40")
    assert result.exit_code == 0, result.output


@takes_long
def test_a_model_that_fails_on_random_rows_is_refused(convert, tmp_path):
    script(tmp_path / "lookup.pt", Lookup)
    text = wrong(convert("lookup.pt", "--inputs", "x int64"))
    assert "random rows (" in text or "cannot convert" in text
    assert [path.name for path in tmp_path.iterdir()] == ["lookup.pt"]


@takes_long
def test_other_results_are_refused(convert, tmp_path, monkeypatch):
    script(tmp_path / "branch.pt", Branch)
    load = torch.export.load

    def other(path):
        program = load(path)
        model = program.module()
        program.module = lambda: lambda x: model(x) + 1e-4
        return program

    monkeypatch.setattr(torch.export, "load", other)
    text = wrong(convert("branch.pt", "--inputs", "x float32 2"))
    assert "gives other results than TorchScript on 1 random rows" in text
    assert [path.name for path in tmp_path.iterdir()] == ["branch.pt"]


def test_files_and_inputs_that_are_wrong(convert, tmp_path):
    assert "none.pt: no such file" in wrong(convert("none.pt"))
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt is not TorchScript" in wrong(convert("text.pt"))
    script(tmp_path / "net.pt", Branch)
    assert "without the shapes of its inputs" in wrong(convert("net.pt"))
    two = wrong(convert("net.pt", "--inputs", "x float32 2, y float32 2"))
    assert "--inputs has 2 tensors, and net.pt takes 1: x" in two
    script(tmp_path / "two.pt", Convolution)
    turned = wrong(convert("two.pt", "--inputs", "scale float32, x float32 3 9 8"))
    assert "in the order scale, x, and two.pt takes x, scale" in turned
    assert "'real' is none of" in wrong(convert("net.pt", "--inputs", "x real 2"))


@takes_long
def test_a_program_is_none_to_convert(convert, tmp_path):
    export(tmp_path / "flame.pt2")
    assert "is not TorchScript; it is a program of torch.export" in wrong(convert("flame.pt2"))
