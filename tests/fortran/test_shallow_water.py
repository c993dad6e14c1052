"""The shallow water on 3 simulation ranks and 1 inference rank, on a coarse grid."""

import json
import subprocess
import sys

import languages
import pytest
from coupling import SERVE

COARSE = """\
&setup
  nx = 50, ny = 37, end_time = 6.0, frames = 4
/
"""


@pytest.mark.takes_long
def test_network_and_formula_agree(mpiexec, tmp_path):
    languages.build("05_shallow_water", tmp_path, "f")
    folder = tmp_path / "05_shallow_water"
    (folder / "out").mkdir(exist_ok=True)
    (folder / "coarse.nml").write_text(COARSE)
    program = ["./shallow_water_f", "coarse.nml"]
    job = ["-n", 3, *program, ":", "-n", 1, *SERVE, "coupling.toml"]
    done = mpiexec(job, cwd=folder, timeout=150)
    assert done.returncode == 0
    assert done.stdout.count(": step ") == 2 * 4
    assert " 3.0 requests on average" in done.stderr

    command = [sys.executable, "report.py"]
    report = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr
    result = json.loads((folder / "out/result.json").read_text())
    assert result["ranks"] == 3
    assert result["volume_drift"] < 1e-12
    # The two closures are not one: else nothing was asked.
    assert 0 < result["depth_error"] < 1e-3
    assert 0 < result["friction_error"] < 0.01
    assert (folder / "out/picture.png").read_bytes().startswith(b"\x89PNG")
