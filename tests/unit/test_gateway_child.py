"""The gateway's child: the watch over it, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mpiserve.gateway import child
from mpiserve.gateway.child import Watch


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(child.time, "monotonic", lambda: now[0])
    return now


def look(watch, clock, seconds, step=0.1):
    """Look so often for some seconds; return how often the child was to be asked."""
    asked = 0
    for _ in range(round(seconds / step)):
        clock[0] += step
        asked += watch.look()
    return asked


def test_a_silent_child_is_asked_once_and_hangs_then(clock):
    watch = Watch(10)
    assert look(watch, clock, 4.9) == 0
    assert look(watch, clock, 4) == 1
    assert not watch.hangs
    assert look(watch, clock, 2) == 0
    assert watch.hangs


def test_a_child_that_answers_does_not_hang(clock):
    watch = Watch(10)
    for _ in range(5):
        assert look(watch, clock, 8) == 1
        watch.hear()
    assert not watch.hangs


def test_the_time_in_which_the_rank_was_stopped_is_not_the_childs(clock):
    watch = Watch(10)
    look(watch, clock, 4)
    clock[0] += 3600
    assert not watch.look() and not watch.hangs
    assert look(watch, clock, 4) == 1 and not watch.hangs


# As a session of its own: else the kernel would end who is stopped when the parent has gone.
KILLED = """
import os, signal, sys
from pathlib import Path
from gateway_rank import Rank
with Rank(Path(sys.argv[1])) as rank:
    print(rank.child._process.pid, flush=True)
    os.kill(rank.child._process.pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_hangs_ends_with_its_rank(tmp_path):
    pytest.importorskip("uvloop")
    with TemporaryDirectory(prefix="mpiserve-") as folder:  # of a socket, whose path is short
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            env=env | {"XDG_RUNTIME_DIR": ""},
            stdout=subprocess.PIPE,
            start_new_session=True,
            timeout=60,
        )
    assert done.returncode == -signal.SIGKILL
    pid, end = int(done.stdout), time.monotonic() + 20
    while (left := lives(pid)) and time.monotonic() < end:
        time.sleep(0.02)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def lives(pid):
    """Tell whether a process runs, or is stopped; one that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
