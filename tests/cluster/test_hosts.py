"""The hosts themselves: nothing of them stays when they end."""

import time
from pathlib import Path

from cluster import hosts
from cluster.conftest import NAMES, need, short_folder

MARK = "MPISERVE_TEST_HOSTS"


def marked(text):
    """Processes of this machine, the hosts' too, that have the mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={text}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" "))
        except OSError:
            continue
    return found


def test_nothing_stays(monkeypatch):
    need(hosts.missing())
    with short_folder() as folder:
        monkeypatch.setenv(MARK, str(folder))
        with hosts.Hosts(NAMES, folder):
            assert len(marked(folder)) > len(NAMES)
        deadline = time.monotonic() + 10
        while marked(folder) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert marked(folder) == []
