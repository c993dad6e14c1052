"""The flame whose model crashes, hangs and returns NaN, on a coarse grid."""

import json
import shutil
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 40


@pytest.mark.timeout(180)
@pytest.mark.takes_long
def test_the_flame_is_that_of_the_undisturbed_run(mpiexec, tmp_path):
    for name in ("01_reacting_flow", "08_survival"):
        shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("out"))
    folder = tmp_path / "08_survival"
    small = ["--nx", 48, "--ny", 36, "--steps", STEPS]
    command = [sys.executable, "-m", "mpiserve", "run", "coupling.toml", "survive.py", *small]
    done = mpiexec(["-n", 5, *command], timeout=150, cwd=folder)
    assert done.returncode == 0
    result = json.loads((folder / "out/result.json").read_text())
    assert all(result[kind] > 0 for kind in ("crash", "hang", "nan"))
    assert result["finite"]
    assert 0 < result["max_rel_difference_temperature"] < result["limit"]
    assert 0 < result["rows_by_physics"] < 0.2 * result["rows"]
    assert (folder / "out/picture.png").read_bytes().startswith(b"\x89PNG")
    assert "A flame that survives its model" in done.stdout
