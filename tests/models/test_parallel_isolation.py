"""Children of the ranks of a replica restart together, whichever of them dies or hangs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from coupling import RUN
from parallel_models import CONFIG, MODELS

# Rank 1 asks for the worst; rank 0 asks at the same time, and gets what it asks for.
SIMULATION = """\
import os
import signal
import time

import mpiserve
import numpy as np

LIMIT = 60


def rows(kind, who):
    return np.tile(np.array([kind, who, 2, 3], np.float32), (2, 1))


def right(y, x):
    return np.allclose(y, 0.5 + 8 * 0.5 * (0.5 + 0.5 * x.sum(1, keepdims=True)))


def ask(kind, who):
    session.comm.Barrier()
    guilty = session.comm.rank == 1
    x = rows(-kind if guilty else 1, who)
    try:
        assert right(pair(x, timeout=LIMIT), x), (kind, who)
        assert not guilty, (kind, who)
    except mpiserve.ModelError as error:
        assert guilty, error
        print(f"kind {kind} at {who}: {error}", flush=True)
    check()


def check():
    assert right(pair(rows(1, 0), timeout=LIMIT), rows(1, 0))


def kill(who):
    os.kill(int(open(f"pid.{who}").read()), signal.SIGKILL)


def kill_under_load(who):
    failed = 0
    for step in range(60):
        if step == 30 and session.comm.rank == 1:
            kill(who)
        try:
            check()
        except mpiserve.ModelError as error:
            assert "the model's process" in str(error), error
            failed += 1
    failed = session.comm.allreduce(failed)
    assert failed <= 1, failed  # the one that was computed, if it was alone
    check()


def reload(version):
    try:
        session.reload("pair", version, timeout=LIMIT)
        text = "right"
    except mpiserve.ModelError as error:
        text = error
    print(f"reload {version}: {text}", flush=True)


with mpiserve.open() as session:
    pair = session.service("pair")
    check()
    for kind, who in ((1, 0), (1, 1), (2, 1), (3, 1)):
        ask(kind, who)
    for who in range(2):
        kill_under_load(who)
        session.comm.Barrier()
        if session.comm.rank == 1:
            kill(who)
            check()
            kill(who)
            time.sleep(1)  # the replica starts again by itself
            check()
    for version in ("aborts", "raises", "good"):
        session.comm.Barrier()
        if session.comm.rank == 1:
            reload(version)
        session.comm.Barrier()
        check()
    print(f"rank {session.comm.rank} is right", flush=True)
"""

# A fork server that is busy importing does not say how a process has ended.
DIED = "the model's process (was killed by SIGKILL|has ended) on this batch"
SAID = {
    "1 at 0": f"tensor-parallel rank 0: {DIED}",
    "1 at 1": f"tensor-parallel rank 1: {DIED}",
    "2 at 1": "tensor-parallel rank .: the model's process took over timeout_s = 2 s on this batch",
    "3 at 1": "tensor-parallel rank .: .*(bad at one rank|took over timeout_s)",
}


def write(folder, config, simulation):
    (folder / "models.py").write_text(MODELS)
    (folder / "c.toml").write_text(config)
    (folder / "sim.py").write_text(simulation)


@pytest.mark.takes_long
def test_a_replica_restarts_whichever_of_its_processes_dies_or_hangs(mpiexec, tmp_path):
    write(tmp_path, CONFIG, SIMULATION)

    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], timeout=170)

    assert done.returncode == 0
    for rank in range(2):
        assert f"rank {rank} is right" in done.stdout
    for kind, text in SAID.items():
        assert re.search(f"^kind {kind}: {text}", done.stdout, re.M), kind
    assert re.search("^reload aborts: .*killed by SIGABRT", done.stdout, re.M)
    assert re.search("^reload raises: .*no weights on this rank", done.stdout, re.M)
    assert "reload good: right" in done.stdout
    assert "between two batches" in done.stderr
    pids = (tmp_path / "pids.txt").read_text().split()
    assert len(pids) > 4 * len(SAID)
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists(), os.readlink(f"/proc/{pid}/exe")


TWO = """\
from pathlib import Path

import mpiserve
import numpy as np

with mpiserve.open() as session:
    service = session.service("pair")
    try:
        service(np.full((2, 4), [-4, 1, 0, 0], np.float32), timeout=60)
        raise AssertionError("answered")
    except mpiserve.ModelError as error:
        assert "tensor-parallel rank 1: the model's process has ended with status 9" in str(error)
    for _ in range(30):
        assert (service(np.zeros((2, 4), np.float32), timeout=30) == 2.5).all()
    Path("gate").touch()
    print("the other replica has answered", flush=True)
"""


@pytest.mark.takes_long
def test_another_replica_answers_while_processes_are_started_again(mpiexec, tmp_path):
    config = CONFIG.replace('version = "good"', 'version = "gated"\nreplicas = 2')
    write(tmp_path, config, TWO)
    done = mpiexec(["-n", 5, *RUN, "c.toml", "sim.py"], timeout=150)
    assert "the other replica has answered" in done.stdout
    assert done.returncode == 0
