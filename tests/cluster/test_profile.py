"""The report and the trace of a job on two hosts that share no folder."""

from __future__ import annotations

import json
from pathlib import Path

import chrome_trace
import pytest
from cluster.conftest import NAMES, OnHosts, need, short_folder
from cluster.hosts import Hosts, missing
from coupling import RUN, write

from mpiserve.observe import spans, trace
from mpiserve.tools import trace as program

SIMULATION = """\
import os
import socket

if socket.gethostname() == "n1":
    os.environ["MPISERVE_PROFILE_FILE"] = "elsewhere.json"
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    for step in range(30):
        session.step()
        twice(np.ones((60, 3), np.float32))
    session.step()
"""


@pytest.mark.timeout(60)
def test_ranks_of_the_other_host_are_in_it(on_hosts, tmp_path):
    write(tmp_path, SIMULATION)
    command = ["-n", 4, *RUN, "c.toml", "sim.py"]  # the head is the last rank, on n2
    done = on_hosts({"n1": 2, "n2": 2}, command, env={"MPISERVE_PROFILE": "summary"})
    assert done.returncode == 0
    report = json.loads((tmp_path / "mpiserve-profile.json").read_text())
    assert report["missing"] == []
    assert [one["rank"] for one in report["simulation"]] == [0, 1, 2]
    assert {one["host"] for one in report["simulation"]} == {"n1", "n2"}
    for client in report["services"]["twice"]["clients"]:
        total = client["total"]["sum"]
        assert client["requests"] == 30
        assert abs(sum(one["sum"] for one in client["stages"].values()) - total) < 0.02 * total


AHEAD = 5000  # seconds
SKEW_NS = 50_000


@pytest.fixture
def differing():
    """Two hosts whose clocks differ."""
    need(missing())
    need(None if Path("/proc/self/ns/time").exists() else "no namespaces of time in this kernel")
    with short_folder() as folder, Hosts(NAMES, folder, {"n2": AHEAD}) as made:
        yield made


def traced(hosts, folder):
    """Run a job; give the traces, and the skew of their clocks when it opened and closed."""
    write(folder, SIMULATION)
    command = ["-n", 4, *RUN, "c.toml", "sim.py"]
    env = {"MPISERVE_PROFILE": "trace"}
    done = OnHosts(hosts, folder)({"n1": 2, "n2": 2}, command, env=env)
    assert done.returncode == 0
    traces = trace.read(sorted(folder.glob("*.parts")))
    skew = 0
    for one in traces:
        expected = -AHEAD * 10**9 if one.host == "n2" else 0
        for clock in one.head["clocks"]:
            error = abs(int(clock["offset"]) - expected)
            assert clock["at"] and error <= int(clock["round_trip"]) / 2
            skew = max(skew, abs(int(one.shift(clock["at"])) - expected))
    return traces, skew


@pytest.mark.timeout(90)
def test_the_clocks_of_a_trace_are_aligned(differing, tmp_path):
    """Both hosts have the clock of this machine, so that it is known by how much they differ.

    Where other programs have the cores, a job may see no message that was not delayed.
    """
    for _ in range(3):
        traces, skew = traced(differing, tmp_path)
        print(f"skew {skew} ns")
        if skew < SKEW_NS:
            break
    assert skew < SKEW_NS
    assert [one.rank for one in traces] == [0, 1, 2, 3]
    assert [one.host for one in traces] == ["n1", "n1", "n2", "n2"]

    file = tmp_path / "t.json"
    assert program.merge([str(one) for one in tmp_path.glob("*.parts")], str(file)) == 0
    found = chrome_trace.parse(file)
    assert set(found.processes) == {0, 1, 2, 3} and len(found.flows) == 90
    of = {one.key: one for one in spans.batches(traces)}
    for one in spans.requests(traces):
        assert one.sent - SKEW_NS < of[one.key].begin < one.seen + SKEW_NS
