"""A pretrained sentence model on one rank and on two, asked by 2 simulation ranks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/07_semantic_search"


@pytest.mark.takes_long
def test_a_real_model_equals_transformers_and_finds_what_is_meant(mpiexec, tmp_path):
    for name in ("coupling.toml", "get_model.py", "runs.py", "simulate.py"):
        shutil.copy(EXAMPLE / name, tmp_path)
    config = (tmp_path / "coupling.toml").read_text()
    table = config[config.index("[service.embedder]") :]
    table = table.replace("[service.embedder]", "[service.sharded]\ntensor_parallel = 2")
    (tmp_path / "coupling.toml").write_text(config + table)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "get_model.py"], cwd=tmp_path, env=env, check=True)
    command = [sys.executable, "-m", "mpiserve", "run", "coupling.toml", "simulate.py"]
    done = mpiexec(["-n", 5, *command], timeout=170)

    assert done.returncode == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    engine = "deepspeed.inference.engine.InferenceEngine"
    assert result["services"] == {"embedder": engine, "sharded": engine}
    assert set(result["max_abs_diff"]) == {"embedder", "sharded"}
    assert max(result["max_abs_diff"].values()) <= 1e-5
    assert result["right_first"] == result["questions"] == len(result["ranking"]) == 7
