"""The flame that begins without weights, on a coarse grid."""

from __future__ import annotations

import json
import shutil

import pytest
from coupling import RUN
from jobs import ROOT

STEPS = 600  # while rows are not trusted they take as long as the physics


@pytest.mark.takes_long
@pytest.mark.timeout(400)
def test_a_flame_learns_its_chemistry_while_it_burns(mpiexec, tmp_path):
    for name in ("01_reacting_flow", "12_learning"):
        left = shutil.ignore_patterns("out", "__pycache__")
        shutil.copytree(ROOT / "examples" / name, tmp_path / name, ignore=left)
    folder = tmp_path / "12_learning"
    small = ["--nx", 48, "--ny", 36, "--steps", STEPS]
    job = ["-n", 4, *RUN, "coupling.toml", "learn.py", *small]
    done = mpiexec(job, cwd=folder, timeout=350)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "out/result.json").read_text())
    assert result["trusted_first"] == 0
    assert result["trusted_last"] >= 0.9
    assert 0 < result["max_rel_error_temperature"] < 0.02
    assert (folder / "out/picture.png").read_bytes().startswith(b"\x89PNG")
    progress = json.loads((folder / "out/learned/chemistry/progress.json").read_text())
    errors = [version["error"] for version in progress["versions"]["published"]]
    assert errors and errors[-1] == min(errors)
    assert len(progress["progress"]) > 1
