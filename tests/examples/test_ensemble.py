"""Three services of different kinds, asked at once by 3 simulation ranks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/06_ensemble"


@pytest.mark.takes_long
def test_three_services_at_once_equal_their_models_in_process(mpiexec, tmp_path):
    for name in ("coupling.toml", "networks.py", "make_models.py", "simulate.py"):
        shutil.copy(EXAMPLE / name, tmp_path)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "make_models.py"], cwd=tmp_path, env=env, check=True)
    command = [sys.executable, "-m", "mpiserve", "run", "coupling.toml", "simulate.py"]
    done = mpiexec(["-n", 8, *command], timeout=150)

    assert done.returncode == 0
    result = json.loads((tmp_path / "out/result.json").read_text())
    deepspeed = "deepspeed.inference.engine.InferenceEngine"
    assert sorted(result["services"]) == ["risk", "surrogate", "writer"]
    assert result["services"]["surrogate"] == result["services"]["writer"] == deepspeed
    assert result["services"]["risk"] == "onnxruntime.InferenceSession"
    assert result["members"] == 3
    assert result["concurrent"] is True
    assert result["mlp_max_abs_diff"] <= 1e-5
    assert result["onnx_max_abs_diff"] <= 1e-5
    assert result["llama_tokens_identical"] is True
