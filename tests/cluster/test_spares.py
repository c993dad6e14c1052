"""A replica is killed on one of two hosts, and a spare takes its place."""

from __future__ import annotations

import pytest
from coupling import CONFIG, RUN, first_is_quick, is_mpich, write

SPARED = CONFIG + 'replicas = 2\nrows = "independent"\n[partition]\nspares = 1\n'
# A rank kills itself when the file is there: processes of another host have numbers of their own.
VICTIM = """\
import os
import signal
import threading
import time

rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("SLURM_PROCID")

def wait():
    while not os.path.exists(f"kill.{rank}"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if rank is not None:
    threading.Thread(target=wait, daemon=True).start()
"""
SIMULATION = """\
import sys
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, rank = session.service("twice"), session.comm.rank

    def step(i):
        x = np.full((60 if i % 2 else 2, 3), 10 * i + rank, np.float32)
        assert (twice(x, timeout=30) == 2 * x).all()

    for i in range(50):
        step(i)
    if rank == 1:
        open(f"kill.{sys.argv[1]}", "w").close()
    begin, n = time.monotonic(), 0
    states = []
    while states.count("gone") != 1 or sum(s in ("ready", "busy") for s in states) != 2:
        assert time.monotonic() - begin < 40, states
        step(n)
        n += 1
        states = [state.state for state in twice.states()]
    for i in range(50):
        step(i)
    assert session.info()["counters"]["rerouted"] <= 1
    print(f"rank {rank} is right", flush=True)
"""


pytestmark = [
    pytest.mark.every_mpi,
    pytest.mark.skipif(is_mpich(), reason="MPICH does not tell other hosts of a death"),
]


# Ranks 0 to 2 are on n1, 3 and 4 on n2: simulation, simulation, replica; replica, spare.
@pytest.mark.parametrize("victim", first_is_quick([2, 3]))
def test_a_spare_takes_the_place_of_a_replica_of_any_host(on_hosts, tmp_path, victim):
    write(tmp_path, SIMULATION, SPARED)
    (tmp_path / "sitecustomize.py").write_text(VICTIM)
    command = ["--with-ft", "ulfm", "-n", 5, *RUN, "c.toml", "sim.py", victim]
    env = {"PYTHONPATH": str(tmp_path)}
    done = on_hosts({"n1": 3, "n2": 2}, command, timeout=90, env=env)
    assert done.returncode == 0
    assert done.stdout.count("is right") == 2
    assert f"takes the place of rank {victim}" in done.stderr
