"""A trainer without a job: pairs of a capture, training, the gate, and what is left on the disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from learning_job import RUN, SERVICE, Job, config_of, plane, record

from mpiserve import backends
from mpiserve.backends.torch.training import load
from mpiserve.config import Config
from mpiserve.config.gateway import GatewayConfig
from mpiserve.config.partition import roles
from mpiserve.errors import ConfigError
from mpiserve.launch import jobscript
from mpiserve.launch.drawing import drawn
from mpiserve.launch.plan import plan
from mpiserve.launch.static_check import findings
from mpiserve.learning.pairs import Pairs
from mpiserve.learning.versions import Version, Versions
from mpiserve.observe import capture_files as files


@pytest.mark.takes_long
def test_a_network_learns_from_recorded_pairs_and_better_versions_are_published(tmp_path):
    job = Job(tmp_path)
    trainer = job.trainer()
    trainer.begin()
    assert not trainer.turn(), "there are no pairs"
    record(tmp_path / "capture", 0, *plane(40))
    assert not trainer.turn(), "there are too few"
    record(tmp_path / "capture", 1, *plane(400, seed=1))
    record(tmp_path / "capture", 2, *plane(50, slope=-90), source=0)  # a model's, not the physics'
    job.turns(trainer)
    trainer.end()
    assert job.published[:2] == ["v1", "v2"]
    first = next(line for line in job.lines if line.startswith("v1 answers"))
    assert "held-out rows, untrained has 1 there; 440 pairs, " in first
    last = job.published[-1]
    for name in "ab":
        weights, about = load(tmp_path / f"{name}-{last}.safetensors")
        scale = weights["output_scale_0"] / weights["input_scale_0"]
        assert np.allclose(weights["network.weight"] * scale, [[3, -1]], atol=0.02)
        history = json.loads(about["history"])
        assert [version["name"] for version in history] == job.published
        errors = [version["error"] for version in history]
        assert errors == sorted(errors, reverse=True) and float(about["error"]) == errors[-1] < 0.01
    progress = json.loads((tmp_path / "learned/net/progress.json").read_text())
    assert progress["pairs"] == 440 and progress["progress"][-1]["error"] < 0.01
    assert (tmp_path / "learned/net/progress.png").stat().st_size > 1000


@pytest.mark.takes_long
def test_a_trainer_goes_on_from_checkpoint_and_reservoir_of_the_job_before(tmp_path):
    job = Job(tmp_path)
    record(tmp_path / "capture", 0, *plane(440))
    trainer = job.trainer()
    trainer.begin()
    job.turns(trainer, 8).end()
    last = job.published[-1]
    (tmp_path / "capture" / files.path_of(tmp_path, RUN, 3, 0, 0).name).unlink()
    job.lines.clear()
    again = job.trainer()
    again.begin()
    assert job.lines[0] == f"trainer net: it goes on from step 80, 440 pairs and version {last}"
    assert job.lines[1] == f"goes on with {last}"
    again.turn()
    again.end()
    progress = json.loads((tmp_path / "learned/net/progress.json").read_text())
    assert [row["steps"] for row in progress["progress"]] == [*range(10, 91, 10)]
    assert progress["progress"][-1]["answering"] < 0.1, "the error of what answers"


@pytest.mark.takes_long
@pytest.mark.parametrize("name", ["checkpoint.safetensors", "reservoir.npz"])
def test_a_checkpoint_that_is_broken_or_of_other_networks_is_said_and_left(tmp_path, name):
    job = Job(tmp_path)
    record(tmp_path / "capture", 0, *plane(440))
    trainer = job.trainer()
    trainer.begin()
    job.turns(trainer, 2).end()
    path = tmp_path / "learned/net" / name
    path.write_bytes(path.read_bytes()[:200])
    again = job.trainer()
    again.begin()
    assert "it starts anew, as its checkpoint cannot be used" in job.lines[-1]
    assert f"{name} is broken or cut off" in job.lines[-1]
    assert again.turn()


@pytest.mark.takes_long
def test_a_loss_that_is_no_number_takes_training_back_to_the_last_good_step(tmp_path):
    job = Job(tmp_path, step="net:nan")
    record(tmp_path / "capture", 0, *plane(440))
    trainer = job.trainer()
    trainer.begin()
    job.turns(trainer, 9)
    text = "the loss is nan in step 14: it goes on from step 10 at rate 0.05"
    assert f"trainer net: {text}" in job.lines
    trainer.end()
    progress = json.loads((tmp_path / "learned/net/progress.json").read_text())
    assert len(progress["progress"]) > 2
    assert all(np.isfinite(row["error"]) for row in progress["progress"])


@pytest.mark.takes_long
def test_training_that_always_diverges_ends_with_one_line(tmp_path):
    job = Job(tmp_path, step="net:always")
    record(tmp_path / "capture", 0, *plane(440))
    trainer = job.trainer()
    trainer.begin()
    job.turns(trainer, 8)
    assert not job.published and trainer.given_up
    assert sum("training ends, untrained answers on" in line for line in job.lines) == 1
    assert not trainer.turn()


@pytest.mark.takes_long
def test_a_version_that_the_service_refuses_is_said_and_the_one_before_answers_on(tmp_path):
    job = Job(tmp_path)
    job.refusal = "rank 4: there is no memory"
    record(tmp_path / "capture", 0, *plane(440))
    trainer = job.trainer()
    trainer.begin()
    trainer.turn()
    text = "trainer net: v1 is not published, untrained answers on: rank 4: there is no memory"
    assert text in job.lines
    job.refusal = ""
    job.turns(trainer)
    assert job.published[0] == "v2", "the next one is tried, and v1 is left where it may be loaded"
    assert (tmp_path / "a-v1.safetensors").exists()


@pytest.mark.takes_long
def test_the_version_before_answers_again_when_it_does_better_on_new_pairs(tmp_path):
    job = Job(tmp_path, rollback=2.0)
    record(tmp_path / "capture", 0, *plane(440))
    trainer = job.trainer()
    trainer.begin()
    while len(job.published) < 2:
        trainer.turn()
    versions = trainer._versions
    for state in trainer._weights[versions.answering.name]:  # as if it were bad in new states
        state["network.weight"] *= -1
    before = versions.before.name
    record(tmp_path / "capture", 1, *plane(200, seed=5))
    trainer._take()
    trainer._judge()
    assert job.published[-1] == before == versions.answering.name
    assert f"{before} answers again: on the newest " in job.lines[-1]
    trainer._judge()
    assert job.published[-1] == before


def test_values_that_are_not_finite_and_other_signatures_are_left_out_and_said(tmp_path):
    job = Job(tmp_path)
    x, y = plane(10)
    x[3, 1] = np.inf
    y[5] = np.nan
    record(tmp_path / "capture", 0, x, y)
    record(tmp_path / "capture", 1, *plane(7), name="other")
    record(tmp_path / "capture", 2, plane(7)[0], np.zeros((7, 3), np.float32), shape=3)
    pairs = Pairs(tmp_path / "capture", job.config.service["net"], {}, job.lines.append)
    found = list(pairs.new())
    assert [len(rows["inputs/x"]) for rows in found] == [8]
    assert [*pairs.new()] == []
    assert len(job.lines) == 2
    assert "not finite" in job.lines[0] and "another signature" in job.lines[1]


def test_pairs_are_read_once_while_parts_become_larger_ones(tmp_path):
    job, folder = Job(tmp_path), tmp_path / "capture"
    pairs = Pairs(folder, job.config.service["net"], {}, job.lines.append)
    every = [plane(5 + i, seed=i) for i in range(6)]
    read = []

    def look():
        read.extend(rows["inputs/x"] for rows in pairs.new())

    look()  # before there is a folder
    for i in range(3):
        record(folder, i, *every[i])
    look()
    parts = [files.path_of(folder, RUN, 3, i, i) for i in range(4)]
    record(folder, 3, *every[3])
    files.merge(parts, files.path_of(folder, RUN, 3, 0, 3), {})
    look()  # both are there
    for path in parts:
        path.unlink()
    record(folder, 5, *every[5])
    look()  # the part before it is not there yet
    assert len(np.concatenate(read)) == 5 + 6 + 7 + 8
    record(folder, 4, *every[4])
    look()
    assert (np.concatenate(read) == np.concatenate([x for x, _ in every])).all()


TABLE = Config.from_dict(
    {"service": {"net": SERVICE}, "capture": {}, "trainer": {"net": {}}}
).trainer["net"]


def test_a_version_is_published_only_if_it_beats_the_one_that_answers():
    versions = Versions(Version("untrained"))
    assert versions.next_name(lambda name: False) == "v1"
    assert not versions.beats(TABLE, 0.6, 1.0), "it is no better than what was asked for"
    assert versions.beats(TABLE, 0.4, 1.0) and not versions.beats(TABLE, float("nan"), 1.0)
    versions.publish(Version("v1", 0.4))
    assert versions.before.name == "untrained"
    assert not versions.beats(TABLE, 0.37, 0.4) and versions.beats(TABLE, 0.35, 0.4)
    versions.publish(Version("v2", 0.2))
    assert versions.worse(TABLE, 0.31, 0.2) and not versions.worse(TABLE, 0.29, 0.2)
    assert versions.worse(TABLE, float("nan"), 0.2)
    assert versions.roll_back().name == "v2" and versions.answering.name == "v1"
    assert not versions.beats(TABLE, 0.19, 0.4, 0.2), "it must beat the one that was rolled back"
    assert versions.beats(TABLE, 0.19, 0.4, 0.3), "which may be worse than it was"
    assert versions.next_name(lambda name: name == "v3") == "v4"
    assert Versions.restored(json.loads(json.dumps(versions.saved()))) == versions


@pytest.mark.parametrize(
    ("service", "trainer", "text"),
    [
        ({"uncertainty": None}, {}, "service.net.version: 'untrained' says that no row is trusted"),
        ({"engine": "compiled"}, {}, "service.net.engine: 'compiled' has no model"),
        ({}, {"ranks": 2}, "trainer.net.ranks: 2: a trainer has one rank"),
        ({}, {"service": "nets"}, "trainer.net.service: no service 'nets'"),
        ({"options": {}, "version": "", "uncertainty": None}, {}, "needs options.weights with {v"),
        ({"backend": "python", "uncertainty": None, "version": "a"}, {}, "backend torch or deeps"),
        ({}, {"rounds": 3}, "trainer.net.rounds: unknown key"),
        (
            {"uncertainty": {"method": "distance", "limit": 1.0, "data": "a.npz"}},
            {},
            "uncertainty.data must say {version}",
        ),
        ({"uncertainty": {"method": "model", "limit": 1.0}}, {}, "needs step"),
    ],
)
def test_a_table_that_cannot_be_is_refused_with_what_to_do(tmp_path, service, trainer, text):
    with pytest.raises(ConfigError) as error:
        config_of(tmp_path, service, **trainer)
    assert text in str(error.value)


def test_a_trainer_needs_a_capture_of_its_service():
    tables = {"service": {"net": SERVICE}, "trainer": {"net": {}}}
    with pytest.raises(ConfigError, match="add a table"):
        Config.from_dict(tables)
    twice = {"net": {}, "other": {"service": "net"}}
    with pytest.raises(ConfigError, match="'net' has the trainer 'net' already"):
        Config.from_dict(tables | {"capture": {}, "trainer": twice})


def test_the_rank_of_a_trainer_is_behind_all_others_but_the_gateway(tmp_path):
    config = config_of(tmp_path)
    assert roles(config, 4) == ["simulation", "simulation", "inference", "trainer"]
    assert roles(config.model_copy(update={"gateway": GatewayConfig()}), 4)[2:] == [
        *("trainer", "gateway"),
    ]
    assert "  ~  trainer net               of net, rank 2" in drawn(config, plan(config, 3))
    with pytest.raises(ConfigError, match="leaves 0 beside a trainer and a simulation rank"):
        roles(config, 2)
    job = jobscript.Job("c.toml", ["./sim"], plan(config, 4), "openmpi")
    assert '-n 1 "$python" -m mpiserve train "$config"' in jobscript.jobscript("mpirun", job)


def test_a_check_names_a_step_that_is_not_there_and_misses_no_weights(tmp_path):
    assert findings(config_of(tmp_path, step="net:nan")) == []
    (finding,) = findings(config_of(tmp_path, step="net:none"))
    assert finding.key == "trainer.net.step" and "'none'" in finding.text
    (finding,) = findings(config_of(tmp_path, step="net:network"))
    assert "called with 4 array(s)" in finding.text


def test_a_service_without_weights_answers_that_it_does_not_know(tmp_path):
    service = config_of(tmp_path).service["net"].of_version()
    backend = backends.create(service)
    backend.load()
    y, uncertainty = backend.run((np.ones((5, 2), np.float32),))
    assert y.shape == (5, 1) and y.dtype == np.float32 and np.isnan(y).all()
    assert uncertainty.shape == (5,) and np.isnan(uncertainty).all()
    other = config_of(tmp_path).service["net"].of_version("v1")
    assert not other.untrained and type(backends.create(other)) is not type(backend)
