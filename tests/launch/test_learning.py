"""A job that begins without weights: the physics answers, a trainer learns, versions answer."""

from __future__ import annotations

import json
import re

import pytest
from coupling import RUN, write

NETWORK = """\
import os
import signal
import torch
from mpiserve.learning import normalized

def network():
    return normalized(torch.nn.Linear(3, 2), [3], [2])

def step(network, optimizer, inputs, outputs):
    step.calls += 1
    loss = (network(inputs["x"]) - outputs["y"]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step.calls == 25 and not os.path.exists("nan"):
        open("nan", "w").close()
        return float("nan")
    if step.calls == 90 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return loss

step.calls = 0
"""

CONFIG = """\
[service.plane]
backend = "torch"
model = "network:network"
options = { weights = "weights/{version}-0.safetensors" }
version = "untrained"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 2] }]
rows = "independent"
warmup = [1]
engine = "eager"
max_batch_rows = 128
[service.plane.uncertainty]
method = "ensemble"
weights = ["weights/{version}-1.safetensors", "weights/{version}-2.safetensors"]
limit = 0.05
[capture]
flush_s = 0.1
[trainer.plane]
first_rows = 200
round_steps = 20
batch_rows = 64
rate = 0.1
largest_error = 0.02
least_s = 0.5
checkpoint_s = 0.2
"""

# Until nearly all rows are trusted. What is trusted must be right; all others are the physics'.
SIMULATION = """\
import time
import mpiserve
import numpy as np

def plane(x):
    return x @ np.array([[1, 2], [3, -4], [0.5, 1]], np.float32) + 7

with mpiserve.open() as session:
    rng = np.random.default_rng(session.comm.rank)
    service = session.service("plane")
    service.fallback(plane)
    first, share, steps, end = service.version, 0.0, 0, time.monotonic() + 120
    while True:
        x = rng.normal(size=(64, 3)).astype(np.float32)
        request = service.submit(x)
        wrong = np.abs(request.result() - plane(x)).max(1)
        assert wrong[request.trusted].max(initial=0) < 0.3
        assert wrong[~request.trusted].max(initial=0) < 1e-5
        if steps == 0:
            assert first == "untrained" and not request.trusted.any()
        steps += 1
        share = 0.9 * share + 0.1 * request.trusted.mean()
        if session.comm.allreduce(share) / session.comm.size > 0.95:
            break
        assert time.monotonic() < end, share
        time.sleep(0.05)
    print("nearly all rows are trusted", flush=True)
"""


def run(mpiexec, folder, config=CONFIG):
    write(folder, SIMULATION, config)
    (folder / "network.py").write_text(NETWORK)
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nearly all rows are trusted") == 2
    return done


@pytest.mark.takes_long
def test_a_job_without_weights_learns_from_its_physics_and_a_second_one_goes_on(mpiexec, tmp_path):
    done = run(mpiexec, tmp_path)
    assert "service plane has no weights yet: its fallback answers" in done.stderr
    assert re.search(r"trainer plane: training begins with \d+ pairs", done.stderr)
    assert re.search(r"trainer plane: v1 answers: error .* untrained has 1 there", done.stderr)
    progress = json.loads((tmp_path / "learned/plane/progress.json").read_text())
    published = progress["versions"]["published"]
    assert published[0]["name"] == "v1"
    assert all((tmp_path / f"weights/{v['name']}-1.safetensors").exists() for v in published)
    again = run(mpiexec, tmp_path)
    assert re.search(r"trainer plane: it goes on from step \d+, \d+ pairs", again.stderr)
    last = published[-1]["name"]
    assert f"trainer plane: goes on with {last}" in again.stderr
    assert "training begins" not in again.stderr


@pytest.mark.takes_long
def test_nan_in_training_and_a_killed_trainer_cost_a_line_each(mpiexec, tmp_path):
    done = run(mpiexec, tmp_path, CONFIG + 'step = "network:step"\n')
    lines = [line for line in done.stderr.splitlines() if "trainer plane" in line]
    assert sum("the loss is nan in step" in line for line in lines) == 1
    assert sum("has ended (signal 9): another one goes on" in line for line in lines) == 1


SLOW = """

quick = network

def network():
    if "learning" not in sys.argv[0]:
        open("loading", "w").close()
        time.sleep(280)
    return quick()
"""

LEAVING = """\
import os
import time
import mpiserve
import numpy as np

with mpiserve.open() as session:
    rng = np.random.default_rng(session.comm.rank)
    service = session.service("plane")
    service.fallback(lambda x: x[:, :2] + 7)
    end = time.monotonic() + 120
    while not os.path.exists("loading"):
        service(rng.normal(size=(64, 3)).astype(np.float32))
        assert time.monotonic() < end
        time.sleep(0.05)
"""


@pytest.mark.takes_long
def test_a_job_ends_while_a_version_is_loaded_for_minutes(mpiexec, tmp_path):
    write(tmp_path, LEAVING, CONFIG)
    (tmp_path / "network.py").write_text("import sys\nimport time\n" + NETWORK + SLOW)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=200)
    assert done.returncode == 0, done.stderr
    assert "v1 is not published, untrained answers on" in done.stderr


def test_a_job_whose_trainer_has_nothing_to_learn_from_ends_as_ever(mpiexec, tmp_path):
    simulation = """\
import mpiserve
with mpiserve.open() as session:
    assert session.info()["roles"] == {"trainer": 1, "simulation": 1, "inference": 1}
    service = session.service("plane")
    service.fallback(lambda x: x[:, :2])
    assert service.version == "untrained"
    import numpy as np
    x = np.ones((3, 3), np.float32)
    assert (service(x) == 1).all()
"""
    write(tmp_path, simulation, CONFIG)
    (tmp_path / "network.py").write_text(NETWORK)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=90)
    assert done.returncode == 0, done.stderr
    assert "trainer" not in done.stdout
