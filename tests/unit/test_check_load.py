import os
import subprocess
import sys

import pytest

MODELS = """\
import sys
import numpy as np

class Counts:
    def __init__(self, factor):
        self.factor = factor
        print("MPI" if "mpi4py.MPI" in sys.modules else "no MPI", file=sys.stderr)

    def __call__(self, x):
        return self.factor * x

def wide(x):
    return np.zeros((len(x), 9), np.float32)

def fails(x):
    raise ValueError("not\\ntoday")
"""
SERVICE = """\
[service.{name}]
backend = "python"
model = "models:{model}"
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 3] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 3] }}]
max_batch_rows = 8
"""
RIGHT = SERVICE.format(name="right", model="Counts") + "options = { factor = 2 }\n"


@pytest.fixture
def load(tmp_path):
    """Run check --load on a text."""
    (tmp_path / "models.py").write_text(MODELS)

    def of(text):
        (tmp_path / "c.toml").write_text(text)
        command = [sys.executable, "-m", "mpiserve", "check", "--load", "c.toml"]
        env = os.environ | {"COLUMNS": "150"}
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )

    return of


def test_models_are_loaded_and_warmed_up_without_mpi(load):
    unasked = SERVICE.format(name="unasked", model="wide") + "warmup = false\n"
    done = load(RIGHT + unasked)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "right" in line)
    assert "models.Counts" in row and "y float32 [-1, 3]" in row and row.count(" s ") == 2
    assert "not run: warmup = false" in done.stdout
    assert "no MPI" in done.stderr


def test_each_that_fails_is_named_with_its_reason(load):
    wide, fails = (SERVICE.format(name=f"s_{name}", model=name) for name in ("wide", "fails"))
    done = load(wide + RIGHT + fails)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("mpiserve: ")]
    assert len(said) == 2
    assert said[0].startswith("mpiserve: c.toml: service.s_wide: ")
    assert said[1].startswith("mpiserve: c.toml: service.s_fails: ValueError: not today; warm-up")
    assert "y float32 [-1, 3]" in done.stdout and done.stdout.count("failed") == 2


def test_what_check_finds_is_not_loaded(load):
    done = load(RIGHT.replace("factor =", "fatcor ="))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mpiserve: c.toml: service.right.options.fatcor: ")
