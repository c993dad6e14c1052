"""What the physics answers in place of a model is captured; a local model doubts as replicas do."""

from __future__ import annotations

import numpy as np
import pytest
from coupling import RUN, write
from gateway_job import GATEWAY, Job
from launch.test_capture import tool

import mpiserve

DOUBTFUL = """\
import numpy as np


def doubtful(x):
    return {"y": 2 * x, "uncertainty": x.max(1) - np.floor(x.max(1))}


def field(x):
    return {"y": 2 * x, "uncertainty": np.float32(x.max() - np.floor(x.max()))}
"""

CONFIG = """\
[service.doubtful]
backend = "python"
model = "doubtful:doubtful"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
max_batch_rows = 64
fallback = "local"
rows = "independent"
warmup = false
[service.doubtful.uncertainty]
method = "model"
limit = 0.5
[capture]
"""

# Of few rows, of leased ones, and of more than a batch; a pair of its own; and a local model.
SIMULATION = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank = session.comm.rank
    service = session.service("doubtful")
    service.fallback(lambda x: -x)
    for step, rows in enumerate((5, 60, 200), 1):
        session.step()
        x = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 3, axis=1) + 1000 * rank
        x[1::4] += 0.75
        request = service.submit(x)
        wrong = np.arange(rows) % 4 == 1
        assert (request.result() == np.where(wrong[:, None], -x, 2 * x)).all()
        assert (request.trusted == ~wrong).all()
    assert service.record(np.full((2, 3), -7, np.float32), np.full((2, 3), 7, np.float32))
    session.comm.Barrier()
    if rank == 0:
        session.unload("doubtful")
        request = service.submit(x[:8])
        assert (request.result() == np.where(wrong[:8, None], -x[:8], 2 * x[:8])).all()
        stats = request.stats
        assert (stats["local_rows"], stats["fallback_rows"]) == (6, 2), stats
        assert (request.trusted == ~wrong[:8]).all()
    session.comm.Barrier()
print(f"rank {rank} is right", flush=True)
"""


@pytest.mark.every_mpi
def test_what_the_physics_answers_in_place_of_a_model_is_captured(mpiexec, tmp_path):
    write(tmp_path, SIMULATION, CONFIG)
    (tmp_path / "doubtful.py").write_text(DOUBTFUL)
    env = {"MPISERVE_PROFILE": "summary"}
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=90, env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n"))[-2:] == ["rank 0 is right", "rank 1 is right"]
    assert "rows that were not trusted: 134, 25 %" in done.stderr
    physics = mpiserve.Capture(tmp_path / "capture", source="physics")
    assert physics.outputs == ["y", "uncertainty"]
    inputs, outputs = physics[:]
    own = inputs["x"][:, 0] == -7
    assert own.sum() == 2 * 2 and np.isnan(outputs["uncertainty"][own]).all()
    assert (outputs["y"] == -inputs["x"]).all()
    assert (outputs["uncertainty"][~own] == 0.75).all()
    steps, ranks = physics.column("step"), physics.column("rank")
    for rank in range(2):
        for step, rows in enumerate((5, 60, 200), 1):
            mine = inputs["x"][(steps == step) & (ranks == rank) & ~own][:, 0] - 1000 * rank
            expected = np.arange(rows)[1::4] + 0.75
            more = [1.75, 5.75] if (rank, step) == (0, 3) else []  # those of the local model
            assert sorted(mine) == sorted([*expected, *more])
    answered = mpiserve.Capture(tmp_path / "capture", source="model")
    inputs, outputs = answered[:]
    assert len(answered) == 2 * 265 and (outputs["y"] == 2 * inputs["x"]).all()
    replayed = tool(tmp_path, "replay", "capture")
    assert "service doubtful: 530 rows in" in replayed and "row " not in replayed


@pytest.mark.every_mpi
def test_a_capture_of_untrusted_rows_has_these_alone_and_what_the_physics_says(mpiexec, tmp_path):
    write(tmp_path, SIMULATION, CONFIG + 'rows = "untrusted"\n')
    (tmp_path / "doubtful.py").write_text(DOUBTFUL)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=90)
    assert done.returncode == 0, done.stderr
    answered = mpiserve.Capture(tmp_path / "capture", source="model")
    inputs, outputs = answered[:]
    assert (outputs["y"] == 2 * inputs["x"]).all() and (outputs["uncertainty"] == 0.75).all()
    steps, ranks = answered.column("step"), answered.column("rank")
    for rank in range(2):
        for step, rows in enumerate((5, 60, 200), 1):
            mine = inputs["x"][(steps == step) & (ranks == rank)][:, 0] - 1000 * rank
            assert sorted(mine) == [*np.arange(rows)[1::4] + 0.75]
    assert len(answered) == 2 * 66
    physics = mpiserve.Capture(tmp_path / "capture", source="physics")
    assert len(physics) == 2 * (66 + 2) + 2, "each of them, pairs of its own, and the local model's"


FIELD = """\
[service.field]
backend = "python"
model = "doubtful:field"
inputs = [{ name = "x", dtype = "float32", shape = [3] }]
outputs = [{ name = "y", dtype = "float32", shape = [3] }]
rows = "none"
warmup = false
[service.field.uncertainty]
method = "model"
limit = 0.5
"""

WAITS = """\
import time
from pathlib import Path

import mpiserve

with mpiserve.open() as session:
    while not Path("stop").exists():
        time.sleep(0.05)
"""


@pytest.mark.takes_long
def test_a_client_outside_of_the_job_sees_which_rows_are_trusted(mpiexec, tmp_path):
    write(tmp_path, WAITS, CONFIG.replace("[capture]\n", FIELD + GATEWAY))
    (tmp_path / "doubtful.py").write_text(DOUBTFUL)
    job = Job(mpiexec, tmp_path, ["-n", 4, *RUN, "c.toml", "sim.py"])
    with job, mpiserve.connect(str(tmp_path / "endpoint.json")) as session:
        service = session.service("doubtful")
        assert [t.name for t in service.outputs] == ["y", "trusted"]
        x = np.full((8, 3), 2, np.float32)
        x[::3] = 2.75
        result = service(x)
        assert (result.y == 2 * x).all() and (result.trusted == (x[:, 0] == 2)).all()
        for value in (2, 2.75):
            result = session.service("field")(np.full(3, value, np.float32))
            assert (result.y == 2 * value).all() and result.trusted.tolist() == (value == 2)
    assert job.done.returncode == 0, job.done.stderr
