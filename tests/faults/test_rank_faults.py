"""What a rank does, or what is done to it, and how the others go on or end."""

from __future__ import annotations

import os
import signal
import time

import pytest
from faults import table
from faults.running import LEFT_WITHIN, Seen, cases, check, started

CLIENTS = 2
NAP = 3.0  # seconds that a stopped rank stays so


def harm(job, fault):
    """Do to the last inference rank, or to what writes its capture, what the row says.

    Returns:
        When, and whom to wake later.
    """
    if not fault.outside or not job.until(lambda: job.asked(fault.plan["at"][0]), 40):
        return None, None
    is_writer = fault.outside == "writer"
    pid = job.writer() if is_writer else job.rank(CLIENTS + fault.inference - 1)
    how = signal.SIGKILL if is_writer or fault.outside == "kill" else signal.SIGSTOP
    os.kill(pid, how)
    return time.monotonic(), pid if how == signal.SIGSTOP else None


def wake(job, fault, stopped):
    """Let a stopped rank go on; return when, if nobody may have waited for it."""
    if fault.outside == "nap":
        time.sleep(NAP)
    else:
        job.until(lambda: ends(job) == CLIENTS, fault.seconds)
    os.kill(stopped, signal.SIGCONT)
    return None if fault.outside == "nap" else time.monotonic()


@pytest.mark.parametrize(("fault", "mode"), cases([*table.RANKS, *table.HOSTS, *table.CAPTURES]))
def test_the_others(fault, mode, tmp_path):
    with started(tmp_path, fault, mode, clients=CLIENTS) as job:
        act, stopped = harm(job, fault)
        woken = wake(job, fault, stopped) if stopped else None
        job.wait(fault.seconds)
        job.settle(LEFT_WITHIN)
        check(Seen(job, fault, mode, CLIENTS, act, woken))


def ends(job):
    """Count the clients that have ended."""
    return sum(e["kind"] == "end" for events in job.events().values() for e in events)
