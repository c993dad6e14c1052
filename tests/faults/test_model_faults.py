"""What a model does to itself costs the request that made it do so, and nobody else."""

from __future__ import annotations

import pytest
from faults import table
from faults.running import LEFT_WITHIN, Seen, cases, check, started

CLIENTS = 3


@pytest.mark.parametrize(("fault", "mode"), cases(table.MODEL))
def test_only_the_guilty_request_fails(fault, mode, tmp_path):
    with started(tmp_path, fault, mode, clients=CLIENTS) as job:
        job.wait(fault.seconds)
        job.settle(LEFT_WITHIN)
        check(Seen(job, fault, mode, CLIENTS))


@pytest.mark.parametrize(("fault", "mode"), cases(table.LOAD))
def test_a_model_that_cannot_be_loaded_leaves_the_others_alone(fault, mode, tmp_path):
    with started(tmp_path, fault, mode) as job:
        job.wait(fault.seconds)
        job.settle(LEFT_WITHIN)
        check(Seen(job, fault, mode, 2))
