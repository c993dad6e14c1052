"""A real pilot: the applications of example 12, and what is left of jobs that are ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mpijob
import numpy as np
import pytest
from coupling import write
from gateway_job import GATEWAY

from mpiserve.bench.paper.pilot import apart, its_python, without_make

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/13_pilot"
SESSION = Path(__file__).with_name("pilot_session.py")
NEEDED = "import radical.pilot, mpiserve.radical"
LIMIT = 280
ENDLESS = """\
import signal
from pathlib import Path
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    while True:
        twice(np.ones((1, 3), np.float32))
        Path(__file__).with_name("begun").touch()
"""


def missing():
    """Say why there is no pilot, or ""."""
    if not its_python():
        return "MPISERVE_RADICAL names no Python with radical.pilot: use make test-pilot"
    try:
        done = subprocess.run(apart([its_python(), "-c", NEEDED]), capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def _radical():
    if why := missing():
        pytest.skip(why)


@pytest.fixture
def run(tmp_path):
    """Run a script in the environment of RADICAL-Pilot, and in namespaces of its own."""
    for file in EXAMPLE.glob("*.*"):
        shutil.copy(file, tmp_path)
    folder = Path(its_python()).parent
    env = {name: value for name, value in mpijob.settings().items() if name != "PYTHONSAFEPATH"}
    env = without_make(env) | {
        "HOME": str(tmp_path),
        "RADICAL_REPORT": "FALSE",
        "MPISERVE_PYTHON": sys.executable,
        "MPISERVE_COMPILE": "0",
        "VIRTUAL_ENV": str(folder.parent),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }

    def run(*words):
        command = apart([its_python(), *map(str, words)])
        done = mpijob.run(command, timeout=mpijob.PATIENCE * LIMIT, env=env, cwd=tmp_path)
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        return done.stdout

    return run


@pytest.mark.takes_long
@pytest.mark.timeout(LIMIT + 20)
def test_the_applications_in_a_pilot(run, tmp_path):
    out = run("pilot.py")
    assert "the service is ready: " in out
    result = json.loads((tmp_path / "out/result.json").read_text())
    cells = result["cells"]
    assert cells["images"] == 48 and cells["found"] == cells["cells"] > 100
    assert cells["area_error"] < 0.1 and cells["brightness_correlation"] > 0.9
    assert result["signatures"] == {"windows": 666, "planted": 36, "found": 36, "elsewhere": 0}
    check_ensemble(result["uncertainty"], tmp_path)


def check_ensemble(result, folder):
    """Compare with the same models in this process."""
    members, ensemble, language = (result[key] for key in ("members", "ensemble", "language"))
    assert len(members) == 3
    assert ensemble["nll"] <= np.mean([member["nll"] for member in members])
    assert language["nll"] < ensemble["nll"] < language["nll"] + 0.3
    assert ensemble["accuracy"] > 0.9 * language["accuracy"] and ensemble["ece"] < 0.1
    check = subprocess.run(
        [sys.executable, "-c", AGAIN], cwd=folder, capture_output=True, text=True, check=True
    )
    assert float(check.stdout) < 1e-5


AGAIN = """\
import sys; sys.path.insert(0, "")
import numpy as np, torch
from data import sentences
from models import LanguageModel
from safetensors.torch import load_file

found, tokens = np.load("out/probabilities.npy"), torch.from_numpy(sentences(7, 400)[:, :-1])
worst = 0.0
for number, answer in enumerate(found):
    model = LanguageModel().eval()
    model.load_state_dict(load_file(f"out/member{number}.safetensors"))
    with torch.inference_mode():
        worst = max(worst, float(abs(model(tokens).numpy() - answer).max()))
print(worst)
"""


@pytest.mark.takes_long
@pytest.mark.timeout(LIMIT + 20)
def test_nothing_is_left_of_jobs_that_are_cancelled_or_lose_their_pilot(run, tmp_path):
    write(tmp_path, ENDLESS)
    config = tmp_path / "c.toml"
    config.write_text(GATEWAY.replace('endpoint_file = "endpoint.json"', "") + config.read_text())
    found = json.loads(run(SESSION, tmp_path).strip().splitlines()[-1])
    assert "service task 'wrong' failed: the job ended with status" in found["failure"]
    assert found["after its time"] == ["CANCELED", []]
    assert found["ran"] >= 2 * 3
    assert found["after cancel"] == []
    assert found["states"] == ["CANCELED", "CANCELED"]
    assert found["after the end of the executor"] == []
