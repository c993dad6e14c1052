"""`mpiserve init`: what it writes runs as it is."""

from __future__ import annotations

import subprocess

import pytest
from coupling import PYTHON, RUN, lines


def written(folder, *args, answers=""):
    command = [PYTHON, "-m", "mpiserve", "init", *args]
    done = subprocess.run(command, cwd=folder, input=answers, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ran(mpiexec, folder):
    done = mpiexec(["-n", 3, *RUN, "coupling.toml", "simulate.py"], cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return lines(done.stdout)


def each(text):
    return [f"rank {rank}: {text}" for rank in range(2)]


def test_an_example_is_written_if_there_is_no_model(mpiexec, tmp_path):
    said = written(tmp_path, "--folder", "job", answers="\n\n")
    assert "cd job; mpiexec -n 3 python -m mpiserve run coupling.toml simulate.py" in said
    assert ran(mpiexec, tmp_path / "job") == each("y float32 (4, 3)")


FUNCTION = """
def flux(u, mask):
    return u.sum(axis=(1, 2)) * mask, u
"""


@pytest.mark.takes_long
def test_a_function_of_the_user_is_served(mpiexec, tmp_path):
    (tmp_path / "physics.py").write_text(FUNCTION)
    answers = "u float64 4 2, mask bool\nflux float64, u float64 4 2\n"
    written(tmp_path, "physics.py:flux", "--folder", "job", answers=answers)
    assert ran(mpiexec, tmp_path / "job") == sorted(
        [*each("flux float64 (4,)"), *each("u float64 (4, 4, 2)")]
    )


@pytest.mark.takes_long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["net.onnx", "flame.pt2"])
def test_a_model_file_needs_no_answers(mpiexec, tmp_path, name):
    from model_files import export, write_onnx

    {"net.onnx": write_onnx, "flame.pt2": export}[name](tmp_path / name)
    written(tmp_path, name, "--name", "mine", "--folder", "job")
    said = ran(mpiexec, tmp_path / "job")
    assert {line.split(":")[0] for line in said} == {"rank 0", "rank 1"}
    assert all(" (4" in line for line in said), said
