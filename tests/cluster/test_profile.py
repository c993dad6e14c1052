"""The report of a job on two hosts that share no folder."""

from __future__ import annotations

import json

import pytest
from coupling import RUN, write

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
