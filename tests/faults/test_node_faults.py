"""What a node lacks, and what happens to the launcher."""

from __future__ import annotations

import os
import signal
import time

import pytest
from faults import table
from faults.running import LEFT_WITHIN, Seen, cases, check, started

CLIENTS = 2


def closed_pipe():
    """Return a pipe that nobody reads."""
    end, write = os.pipe()
    os.close(end)
    return write


def streams(fault):
    """Return where the output of the job goes, if it goes nowhere."""
    if fault.outside == "full":
        return {"stdout": "/dev/full", "stderr": "/dev/full"}
    if fault.outside == "closed":
        return {"stdout": closed_pipe(), "stderr": closed_pipe()}
    return {}


def harm(job, fault):
    """Do what the row says; return when, if the job runs by then."""
    if fault.outside == "small":
        (job.folder / "ready").touch()
        return None
    if fault.outside == "fill":
        job.until(lambda: job.asked(fault.plan["at"][0] - 1), 40)
        job.room.fill(leave=64 << 10)
        (job.folder / "ready").touch()
    elif fault.outside == "launcher":
        job.until(lambda: job.asked(5), 40)
        os.kill(job.launcher.pid, signal.SIGKILL)
    else:
        return None
    return time.monotonic()


@pytest.mark.parametrize(("fault", "mode"), cases(table.NODE))
def test_the_job(fault, mode, tmp_path):
    with started(tmp_path, fault, mode, clients=CLIENTS, **streams(fault)) as job:
        act = harm(job, fault)
        job.wait(fault.seconds)
        job.settle(LEFT_WITHIN)
        if fault.outside == "fill":
            job.shm.remove("filler")
        check(Seen(job, fault, mode, CLIENTS, act))
