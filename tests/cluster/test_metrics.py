"""Each node of a job exports the metrics of its own ranks, and `top` there sees these."""

from __future__ import annotations

import json
import re

import pytest
from coupling import CONFIG, RUN, write

SIMULATION = """\
import socket
import subprocess
import sys
from pathlib import Path

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    twice(np.ones((2, 3), np.float32))
    command = [sys.executable, "-P", "-m", "mpiserve", "top", "--once", "--json", "--every", "0.1"]
    seen = subprocess.run(command, capture_output=True, text=True).stdout
    Path(f"top.{socket.gethostname()}").write_text(seen)
    session.comm.Barrier()
"""


@pytest.mark.takes_long
@pytest.mark.timeout(60)
def test_each_node_exports_its_own_ranks(on_hosts, tmp_path):
    write(tmp_path, SIMULATION, f'[partition]\nplacement = "per-node"\n{CONFIG}replicas = 2\n')
    folder = tmp_path / "seen"
    command = ["-n", 4, *RUN, "c.toml", "sim.py"]
    done = on_hosts({"n1": 2, "n2": 2}, command, env={"MPISERVE_METRICS": str(folder)})
    assert done.returncode == 0
    files = sorted(folder.glob("*.prom"))
    up = [re.findall(r'mpiserve_up{.*rank="(\d)"', file.read_text()) for file in files]
    assert up == [["0", "1"], ["2", "3"]]
    for host, client, head in (("n1", 0, 1), ("n2", 2, 3)):
        (job,) = json.loads((tmp_path / f"top.{host}").read_text())["jobs"]
        assert (job["host"], job["ranks"], job["ranks_here"]) == (host, 4, 2)
        assert [one["rank"] for one in job["simulation"]] == [client]
        assert [one["rank"] for one in job["services"][0]["replicas"]] == [head]
