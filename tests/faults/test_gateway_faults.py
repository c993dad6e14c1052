"""What happens to a gateway, and that no rank of the simulation notices."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from faults import table
from faults.running import LEFT_WITHIN, Seen, cases, check, started

import mpiserve

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "urllib3"):
    pytest.importorskip(package)

CLIENTS = 2
RANK = CLIENTS + 1  # behind one inference rank
NAP = 3.0  # seconds that a stopped rank stays so
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def of(number):
    return cases([fault for fault in table.GATEWAY if fault.number == number])


def ask(job):
    """Ask as a client outside of the job."""
    with mpiserve.connect(job.folder / "endpoint.json") as session:
        assert (session.service("twice")(X) == 2 * X + 1).all()


def process_of(job):
    """Return the process that speaks to clients, or 0."""
    found = [one.pid for one in job.processes() if "mpiserve.gateway.server" in one.command]
    return found[0] if len(found) == 1 else 0


def ready(job, fault):
    """Wait for a gateway that has answered, beside a simulation that has begun."""
    assert job.until((job.folder / "endpoint.json").exists, fault.seconds), "no gateway"
    ask(job)
    assert job.until(lambda: job.asked(fault.plan["at"][0]), fault.seconds), "no simulation"


def harm(job, fault):
    """Do to the rank what the row says; return when, and when a stopped one went on."""
    pid = job.rank(RANK)
    if fault.outside == "kill both":
        os.kill(process_of(job), signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL if fault.outside.startswith("kill") else signal.SIGSTOP)
    act = time.monotonic()
    if fault.outside.startswith("kill"):
        return act, None
    if fault.outside == "nap":
        time.sleep(NAP)
    else:
        job.until(lambda: ends(job) == CLIENTS, fault.seconds)
    os.kill(pid, signal.SIGCONT)
    return act, None if fault.outside == "nap" else time.monotonic()


def ends(job):
    """Count the clients that have ended."""
    return sum(e["kind"] == "end" for events in job.events().values() for e in events)


@pytest.mark.parametrize(("fault", "mode"), of(21))
def test_the_simulation_goes_on_without_the_rank(fault, mode, tmp_path):
    with started(tmp_path, fault, mode, clients=CLIENTS) as job:
        ready(job, fault)
        act, woken = harm(job, fault)
        job.wait(fault.seconds)
        job.settle(LEFT_WITHIN)
        # A rank that is killed cannot remove its socket.
        job.session = [name for name in job.session if not name.endswith("/gateway.sock")]
        check(Seen(job, fault, mode, CLIENTS, act, woken))


@pytest.mark.parametrize(("fault", "mode"), of(22))
def test_another_process_answers_clients(fault, mode, tmp_path):
    with started(tmp_path, fault, mode, clients=CLIENTS) as job:
        ready(job, fault)
        before, act = process_of(job), time.monotonic()
        os.kill(before, signal.SIGKILL if fault.outside == "kill" else signal.SIGSTOP)
        assert job.until(lambda: process_of(job) not in (0, before), fault.seconds), "no other"
        ask(job)
        job.wait(fault.seconds)
        job.settle(LEFT_WITHIN)
        check(Seen(job, fault, mode, CLIENTS, act))
