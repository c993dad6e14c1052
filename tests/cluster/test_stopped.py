"""An inference rank of another host is stopped, at any moment, where MPI goes on after a death."""

from __future__ import annotations

import pytest
from cluster.conftest import long
from coupling import CONFIG, RUN, is_mpich, write

pytestmark = [
    pytest.mark.every_mpi,
    pytest.mark.skipif(is_mpich(), reason="messages are for worlds in which MPI tolerates a death"),
]

# Ranks stop when their file is there; a process of the same host lets them go on.
STOPS = """\
import os
import signal
import subprocess
import sys
import threading
import time

rank = os.environ.get("OMPI_COMM_WORLD_RANK")
WAKER = '''
import os, signal, sys, time
pid, rank, parent, n = int(sys.argv[1]), sys.argv[2], os.getppid(), 0
while os.getppid() == parent:
    if os.path.exists(f"go.{rank}.{n}"):
        os.kill(pid, signal.SIGCONT)
        n += 1
    time.sleep(0.002)
'''

def stop():
    n = 0
    while True:
        if os.path.exists(f"stop.{rank}.{n}"):
            n += 1
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.001)

if rank is not None and rank == os.environ.get("VICTIM"):
    command = [sys.executable, "-S", "-E", "-c", WAKER, str(os.getpid()), rank]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=True)
    threading.Thread(target=stop, daemon=True).start()
"""
BEGIN = """\
import os
import time

import mpiserve
import numpy as np

victim = os.environ["VICTIM"]


def say(what, n):
    open(f"{what}.{victim}.{n}", "w").close()


"""
# Who asks during the stop must leave by itself: the rank goes on only when three requests in a row
# have. Results are large: the stop often comes while they are fetched. What was given to the caller
# stays as it is, whatever arrives later.
ALONE = (
    BEGIN
    + """\
with mpiserve.open() as session:
    twice, rank = session.service("twice"), session.comm.rank
    twice.fallback(lambda x: x + 1e6)
    kept, number, modelled = [], 0, 0

    def ask(timeout):
        global number, modelled
        number += 1
        x = np.full((2 if number % 5 == 0 else 60000, 3), 2 * number + rank, np.float32)
        y = twice(x, timeout=timeout)
        is_models = y[0, 0] == 2 * x[0, 0]
        kept[number % 8 : number % 8 + 1] = [(y, y[0, 0])]
        assert (y == (2 * x if is_models else x + 1e6)).all(), (number, y)
        modelled += is_models
        return is_models

    for n in range(5):
        for i in range(5 + 3 * n):
            ask(30)
        session.comm.Barrier()
        if rank == 0:
            say("stop", n)
        without = 0
        while without < 3:
            without = 0 if ask(0.2) else without + 1
        session.comm.Barrier()
        if rank == 0:
            say("go", n)
        end = time.monotonic() + 30
        while not ask(1) and time.monotonic() < end:
            pass
        for y, value in kept:
            assert (y == value).all()
    assert ask(30)
    print(f"rank {rank} is right", flush=True)
"""
)
OTHER = (
    BEGIN
    + """\
with mpiserve.open() as session:
    twice, rank = session.service("twice"), session.comm.rank
    number = 0

    def ask():
        global number
        number += 1
        x = np.full((2 if number % 3 else 20000, 3), 2 * number + rank, np.float32)
        assert (twice(x, timeout=60) == 2 * x).all()

    def until(state):
        end = time.monotonic() + 40
        while states()[1] != state and time.monotonic() < end:
            ask()
        assert states() == ["ready", state], states()

    def states():
        return [state.state.replace("busy", "ready") for state in twice.states()]

    for i in range(30):
        ask()
    session.comm.Barrier()
    if rank == 0:
        say("stop", 0)
    until("suspended")
    for i in range(20):
        ask()
    session.comm.Barrier()
    if rank == 0:
        say("go", 0)
    until("ready")
    for i in range(20):
        ask()
    print(f"rank {rank} is right", flush=True)
"""
)
BIG = CONFIG.replace("max_batch_rows = 64", "max_batch_rows = 120000")


def run(on_hosts, tmp_path, simulation, config, ranks, victim):
    write(tmp_path, simulation, config)
    (tmp_path / "sitecustomize.py").write_text(STOPS)
    env = {"PYTHONPATH": str(tmp_path), "VICTIM": str(victim), "MPISERVE_STOPPED_TIMEOUT": "1"}
    command = ["--with-ft", "ulfm", "-n", sum(ranks.values()), *RUN, "c.toml", "sim.py"]
    done = on_hosts(ranks, command, timeout=90, env=env)
    assert done.returncode == 0
    assert done.stdout.count("is right") == 2


# Simulation ranks on n1, the inference rank on n2.
def test_requests_leave_a_stopped_rank_when_their_time_is_over(on_hosts, tmp_path):
    run(on_hosts, tmp_path, ALONE, BIG, {"n1": 2, "n2": 1}, 2)


# Simulation, simulation and a replica on n1; a replica on n2.
@long
def test_the_other_replica_answers_while_one_is_stopped(on_hosts, tmp_path):
    config = BIG + 'replicas = 2\nrows = "independent"\n'
    run(on_hosts, tmp_path, OTHER, config, {"n1": 3, "n2": 1}, 3)
