"""What a trainer does where files, numbers, disks and services are not as they should be."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learning_job import RUN, Job, config_of, plane, record

from mpiserve.backends.torch.training import Networks, load, save
from mpiserve.errors import ConfigError, Error, RequestTimeout
from mpiserve.learning import normalized
from mpiserve.learning.pairs import Pairs
from mpiserve.learning.rank import Work
from mpiserve.learning.store import Store
from mpiserve.observe import capture_files as files

STEPS = """
import torch

def poison(network, optimizer, inputs, outputs):
    poison.calls += 1
    loss = (network(inputs["x"]) - outputs["y"]).square().mean()
    if poison.calls == 25:
        loss = loss * float("nan")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

poison.calls = 0

def forget(network, optimizer, inputs, outputs):
    with torch.no_grad():
        for weights in network.parameters():
            weights.zero_()
    return (network(inputs["x"]) - outputs["y"]).square().mean()

class Mixing(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) - x.mean()

def mixing():
    return Mixing(2, 1)
"""

NO_ROWS = {
    "rows": "none",
    "inputs": [{"name": "x", "dtype": "float32", "shape": [4, 2]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [4, 1]}],
}


def begun(job):
    trainer = job.trainer()
    trainer.begin()
    return trainer


@pytest.mark.takes_long
def test_a_nan_that_the_optimizer_has_seen_is_in_no_checkpoint(tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)
    job = Job(tmp_path, step="steps:poison")
    record(tmp_path / "capture", 0, *plane(440))
    trainer = begun(job)
    job.turns(trainer, 5).end()
    assert sum("the loss is nan" in line for line in job.lines) == 1 and not trainer.given_up
    table, _ = load(tmp_path / "learned/net/checkpoint.safetensors")
    assert any(name.startswith("optimizer.0.") for name in table)
    assert all(tensor.isfinite().all() for tensor in table.values())


@pytest.mark.takes_long
def test_a_network_that_looks_at_other_rows_is_not_trained(tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)
    job = Job(tmp_path)
    job.config = config_of(tmp_path, {"model": "steps:mixing"})
    record(tmp_path / "capture", 0, *plane(440))
    trainer = begun(job)
    job.turns(trainer, 2)
    assert "answers depend on the other rows of a call" in job.lines[-1]
    assert trainer.given_up and not job.published


def test_there_is_no_training_before_there_are_pairs_to_validate_with(tmp_path):
    job = Job(tmp_path, held_out=0.001)
    record(tmp_path / "capture", 0, *plane(440))
    trainer = begun(job)
    assert not trainer.turn() and not job.lines


def test_errors_of_equal_values_count_as_they_are_and_of_the_mean_on_the_same_rows(tmp_path):
    config = config_of(tmp_path)
    networks = Networks(config.service["net"], config.trainer["net"])
    networks.measure({"outputs/y": np.full((1000, 1), 0.1)})
    assert networks.scales["y"] == 1
    held = {"outputs/y": plane(100)[1]}
    networks.measure(held)
    assert np.isclose(networks.error_of_mean(held, held), 1)
    assert networks.error_of_mean({"outputs/y": 10 * held["outputs/y"]}, held) > 5


@contextmanager
def room_for(bytes_of_a_file: int) -> Iterator[None]:
    """Let no file be larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_an_oserror_and_leaves_nothing(tmp_path):
    with room_for(4096):
        with pytest.raises(OSError, match="cannot be written"):
            save(tmp_path / "a.safetensors", {"a": torch.zeros(100_000)}, {})
        with pytest.raises(OSError):  # noqa: PT011
            Store(tmp_path).save_pairs({"a": np.zeros(100_000)}, {})
    assert not [*tmp_path.iterdir()]


@pytest.mark.takes_long
def test_while_the_disk_is_full_nothing_is_published_and_each_reason_is_said_once(tmp_path):
    job = Job(tmp_path, checkpoint_s=0.001)
    record(tmp_path / "capture", 0, *plane(440))
    trainer = begun(job)
    with room_for(100):
        job.turns(trainer, 6)
    assert not job.published and not trainer.given_up
    assert sum("v1 is not published, untrained answers on: " in line for line in job.lines) == 1
    assert sum("there is no checkpoint: " in line for line in job.lines) == 1
    assert not [path for path in tmp_path.rglob("*") if ".new" in path.name]
    job.turns(trainer)
    assert job.published, "there is room again"
    assert (tmp_path / "learned/net/checkpoint.safetensors").exists()


@pytest.mark.takes_long
def test_a_folder_that_cannot_be_written_to_costs_checkpoints_and_a_line(tmp_path):
    job = Job(tmp_path, checkpoint_s=0.001)
    (tmp_path / "learned").write_text("")
    record(tmp_path / "capture", 0, *plane(440))
    trainer = begun(job)
    job.turns(trainer).end()
    assert job.published, "versions lie elsewhere"
    assert sum("there is no checkpoint: " in line for line in job.lines) == 1


@pytest.mark.takes_long
def test_a_version_that_fails_validation_is_not_published_and_that_is_said(tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)
    job = Job(tmp_path, step="steps:forget", patience=1)
    record(tmp_path / "capture", 0, *plane(440))
    trainer = begun(job)
    job.turns(trainer)
    assert not job.published and not [*tmp_path.glob("a-*")]
    assert "not published: error 1 on " in job.lines[-1]
    assert "untrained, which answers, has 1; it rests until 463 pairs" in job.lines[-1]


def test_a_file_that_cannot_be_read_keeps_no_other_pairs_and_is_said_once(tmp_path):
    job, folder = Job(tmp_path), tmp_path / "capture"
    record(folder, 0, *plane(10))
    files.path_of(folder, RUN, 2, 0, 0).write_bytes(b"no HDF5")
    pairs = Pairs(folder, job.config.service["net"], {}, job.lines.append)
    assert [len(rows["inputs/x"]) for rows in pairs.new()] == [10]
    assert not job.lines, "it may become a part of a larger one"
    for _ in range(4):
        assert not [*pairs.new()]
    assert len(job.lines) == 1 and "cannot be read" in job.lines[0]


def test_pairs_are_read_in_blocks_and_on_from_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    job = Job(tmp_path)
    x, y = plane(23)
    record(tmp_path / "capture", 0, x, y)
    pairs = Pairs(tmp_path / "capture", job.config.service["net"], {}, job.lines.append)
    first = next(pairs.new())["inputs/x"]
    assert 0 < len(first) < 10
    others = [rows["inputs/x"] for rows in pairs.new()]
    assert (np.concatenate([first, *others]) == x).all()


def test_two_jobs_do_not_train_in_one_folder(tmp_path):
    first, second = Store(tmp_path / "a/b"), Store(tmp_path / "a/b")
    first.lock()
    with pytest.raises(Error, match="in use by a trainer of another job"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_the_version_that_answers_is_loaded_again_after_one_that_was_refused():
    asked = []

    class Session:
        def states(self, name):
            return [SimpleNamespace(state="serving")]

        def reload(self, name, version, timeout):
            asked.append(version)
            if version == "v2":
                raise RequestTimeout("2 of 3 replicas")

    work = Work.__new__(Work)
    work._session, work._service, work._version = Session(), SimpleNamespace(name="net"), "v1"
    assert work._publish("v2", "") == "2 of 3 replicas"
    assert asked == ["v2", "v1"] and work._version == "v1"


def test_a_network_between_scaled_tensors_takes_bool():
    network = normalized(torch.nn.Linear(2, 1), [2], [1])
    with torch.no_grad():
        found = network(torch.tensor([[True, False]]))
        assert torch.equal(found, network(torch.tensor([[1.0, 0.0]])))


@pytest.mark.parametrize(
    ("service", "trainer", "text"),
    [
        ({"postprocess": "net:network"}, {}, "has preprocess, postprocess or model_outputs"),
        ({"rows": "together"}, {}, "needs fixed shapes and independent rows"),
        (NO_ROWS, {}, "service.net.rows: 'none' has no rows that could be trusted"),
        ({"reload": "in-place"}, {}, "replicas may answer with different versions"),
        ({"reproducible": True}, {}, "when a version answers depends on time"),
        ({"version": "v0", "engine": "compiled"}, {}, "nothing is compiled while the job runs"),
        ({"options": {"weights": "{version}/a.index.json"}}, {}, "a .safetensors file"),
        (
            {"uncertainty": {"method": "distance", "limit": 1.0, "data": "d-{version}.h5"}},
            {},
            "and end in .npz",
        ),
    ],
)
def test_a_service_whose_versions_would_not_be_what_was_validated_is_refused(
    tmp_path, service, trainer, text
):
    with pytest.raises(ConfigError) as error:
        config_of(tmp_path, service, **trainer)
    assert text in str(error.value)
