"""A host that falls off the network in the middle of a run."""

from __future__ import annotations

import time

import pytest
from coupling import CONFIG, PYTHON, RUN, write

ENDLESS = """\
import mpiserve
import numpy as np

with mpiserve.open() as session, open(f"log.{session.comm.rank}", "w", buffering=1) as log:
    twice = session.service("twice")
    while True:
        y = twice(np.ones((8, 3), np.float32))
        log.write(f"{y.sum()}\\n")
"""
ON_EACH = "[partition]\nplacement = 'per-node'\nper_node = 1\n" + CONFIG + "replicas = 2\n"
SILENCE = 3  # seconds


def until(there, seconds):
    """Wait for something, and tell whether it came."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.timeout(120)
@pytest.mark.parametrize("config", [CONFIG, ON_EACH], ids=["one replica", "a replica on each"])
def test_every_rank_ends_and_names_the_host(cluster, on_hosts, tmp_path, config):
    write(tmp_path, ENDLESS, config)
    clients = [0, 1, 2] if config == CONFIG else [0, 1]
    slots = {"n1": 3, "n2": 1} if config == CONFIG else {"n1": 2, "n2": 2}
    logs = [tmp_path / f"log.{rank}" for rank in clients]

    def ranks():
        every = [line for name in cluster.names for line in cluster.processes(name)]
        return [line for line in every if line.startswith(f"{PYTHON} -m mpiserve run")]

    job = ["-n", 4, *RUN, "c.toml", "sim.py"]
    with on_hosts.started(slots, job, env={"MPISERVE_LOST": str(SILENCE)}) as log:
        assert until(lambda: all(f.exists() and f.stat().st_size > 100 for f in logs), 20)
        assert len(ranks()) == 4
        cluster.cut("n2")
        # Looks are half a second apart, and the machine may be busy: not a limit on time.
        assert until(lambda: not ranks(), 10 * SILENCE), ranks()
        assert f"no sign of life from host n2 for {SILENCE} s" in log.read_text()
