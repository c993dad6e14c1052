"""A host that falls off the network in the middle of a run."""

from __future__ import annotations

import time

import pytest
from cluster.conftest import long
from coupling import CONFIG, PYTHON, RUN, is_mpich, write

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


def ranks(cluster):
    """The ranks of `run` that still are."""
    every = [line for name in cluster.names for line in cluster.processes(name)]
    return [line for line in every if line.startswith(f"{PYTHON} -m mpiserve run")]


def answered(logs):
    return all(log.exists() and log.stat().st_size > 100 for log in logs)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="one replica"),
        pytest.param(ON_EACH, id="a replica on each", marks=pytest.mark.takes_long),
    ],
)
def test_every_rank_ends_and_names_the_host(cluster, on_hosts, tmp_path, config):
    write(tmp_path, ENDLESS, config)
    clients = [0, 1, 2] if config == CONFIG else [0, 1]
    slots = {"n1": 3, "n2": 1} if config == CONFIG else {"n1": 2, "n2": 2}
    logs = [tmp_path / f"log.{rank}" for rank in clients]
    job = ["-n", 4, *RUN, "c.toml", "sim.py"]
    with on_hosts.started(slots, job, env={"MPISERVE_LOST": str(SILENCE)}) as (_, log):
        assert until(lambda: answered(logs), 20)
        assert len(ranks(cluster)) == 4
        cluster.cut("n2")
        # Looks are half a second apart, and the machine may be busy: not a limit on time.
        assert until(lambda: not ranks(cluster), 10 * SILENCE), ranks(cluster)
        assert f"no sign of life from host n2 for {SILENCE} s" in log.read_text()


@pytest.mark.every_mpi
@long
@pytest.mark.skipif(is_mpich(), reason="MPICH has no such setting")
@pytest.mark.timeout(120)
def test_the_launcher_of_open_mpi_ends_too_where_it_looks_sooner(cluster, on_hosts, tmp_path):
    write(tmp_path, ENDLESS, ON_EACH)
    logs = [tmp_path / f"log.{rank}" for rank in (0, 1)]
    keepalive = {f"PRTE_MCA_oob_tcp_keepalive_{name}": "1" for name in ("time", "intvl", "probes")}
    env = {"MPISERVE_LOST": "30", **keepalive}
    job = ["-n", 4, *RUN, "c.toml", "sim.py"]
    with on_hosts.started({"n1": 2, "n2": 2}, job, env=env) as (launcher, log):
        assert until(lambda: answered(logs), 30)
        cluster.cut("n2")
        assert until(lambda: launcher.poll() is not None and not ranks(cluster), 40)
        assert "on node n2" in log.read_text()
