"""What a trainer does where files, numbers, disks and services are not as they should be."""

from __future__ import annotations

import pytest
from learning_job import Job, config_of, plane, record

from mpiserve.backends.torch.training import load
from mpiserve.errors import ConfigError

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
"""


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


@pytest.mark.parametrize(
    ("service", "trainer", "text"),
    [
        ({"postprocess": "net:network"}, {}, "postprocess"),
    ],
)
def test_a_service_whose_versions_would_not_be_what_was_validated_is_refused(
    tmp_path, service, trainer, text
):
    with pytest.raises(ConfigError) as error:
        config_of(tmp_path, service, **trainer)
    assert text in str(error.value)
