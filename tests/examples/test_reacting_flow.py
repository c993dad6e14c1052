"""The reacting flow on 3 simulation ranks and 1 inference rank, on a coarse grid."""

import json
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/01_reacting_flow"
STEPS = 20


@pytest.fixture
def run(mpiexec, tmp_path):
    """Run the example with some options; return its result.json and what it printed."""

    def start(*options):
        script = [EXAMPLE / "coupling.toml", EXAMPLE / "simulate.py", "--out", tmp_path]
        small = ["--nx", 48, "--ny", 36, "--steps", STEPS]
        command = [sys.executable, "-m", "mpiserve", "run", *script, *small, *options]
        done = mpiexec(["-n", 4, *command], timeout=150)
        assert done.returncode == 0
        return json.loads((tmp_path / "result.json").read_text()), done.stdout

    return start


def check_bounds(bounds):
    slack = 1e-3
    for name in ("fuel", "oxidizer"):
        low, high = bounds[name]
        assert -slack <= low <= high <= 1 + slack
    low, high = bounds["temperature"]
    assert 0 < low <= high < 20


def test_coupled_run_agrees_with_the_reference(run, tmp_path):
    result, printed = run()

    assert result["steps"] == STEPS
    assert 0 < result["max_rel_error_temperature"] < 0.02
    assert result["speedup"] > 0
    assert result["mean_batch_rows_per_request_rows"] >= 2.5
    assert result["simulation_rank_rma_targets"] == 0
    assert result["engine"] == "deepspeed.inference.engine.InferenceEngine"
    assert "MPI" in result["mpi"]
    check_bounds(result["bounds_coupled"])
    check_bounds(result["bounds_reference"])
    picture = (tmp_path / "picture.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "result.json" in printed
    # Open MPI gives ranks a terminal; what arrives here is a log.
    assert "\x1b" not in printed and "\r" not in printed.replace("\r\n", "\n")
    assert f"coupled to the network: step {STEPS} of {STEPS}" in printed


@pytest.mark.takes_long
def test_run_without_reference_and_picture_says_that_it_has_none(run, tmp_path):
    result, _ = run("--no-reference", "--no-picture")

    assert result["max_rel_error_temperature"] is None
    assert result["speedup"] is None
    assert result["mean_batch_rows_per_request_rows"] >= 2.5
    check_bounds(result["bounds_coupled"])
    assert not (tmp_path / "picture.png").exists()
