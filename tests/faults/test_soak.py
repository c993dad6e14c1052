"""The soak itself: whoever ends it ends its job too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from faults.running import LEFT_WITHIN

SOAK = Path(__file__).with_name("soak.py")
TAG = "MPISERVE_TEST_OF_SOAK"


def tagged(tag: str) -> list[int]:
    """Return the processes that have inherited the tag."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{TAG}={tag}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def until(there, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := there()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(found)


@pytest.mark.takes_long
@pytest.mark.timeout(120)
def test_its_job_ends_with_it():
    tag = uuid.uuid4().hex
    soak = subprocess.Popen(
        [sys.executable, str(SOAK), "--minutes", "5"],
        env=os.environ | {TAG: tag},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert until(lambda: len(tagged(tag)) > 4, 60)  # ranks have started
        soak.terminate()
        assert soak.wait(60) == 128 + signal.SIGTERM
        assert until(lambda: not tagged(tag), LEFT_WITHIN), "its job goes on"
    finally:
        for pid in tagged(tag):
            os.kill(pid, signal.SIGKILL)
