"""What a simulation rank that computes, and calls nothing for two seconds, costs the others.

On a quiet machine, by itself, with the figures on stdout:

    MPISERVE_CLUSTER=required .venv/bin/python -m pytest -s tests/cluster/test_neighbour.py
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import pytest
from cluster.conftest import long
from coupling import PYTHON, SERVE, write

ROUNDS = 8
GROUPS = Path("/proc/sys/kernel/sched_autogroup_enabled")
# What ranks bind themselves with, late: where others keep the cores busy, three ranks on one core
# take a minute to open with Open MPI.
BIND = """\
import os


def bind(core):
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
"""
BOUND_MODEL = """\
import os

import bind

bind.bind(int(os.environ["SHARED_CORE"]))


def twice(x):
    return 2 * x
"""
# Three simulation ranks: "near" is on the host of the head, "far" is not, and "busy", beside the
# head, sleeps or computes. Either of the others asks meanwhile, or they send each other messages,
# by TCP, in which MPI has no part: what the computing costs there is the machine's own doing.
# Whoever has no part in a phase sleeps, because the others share a core. Phases begin by the clock:
# ranks that share a core need seconds for a barrier of Open MPI if the machine does other things.
PROGRAM = """\
import json
import os
import socket
import sys
import time

import mpiserve
import numpy as np
from bind import bind

NEAR, BUSY, FAR = 0, 1, 2
SECONDS, PERIOD = 2.0, 2.5
x = np.ones((8, 3), np.float32)
y = np.empty_like(x)


def compute():
    a, end = np.full((64, 64), 1 / 64), time.monotonic() + SECONDS
    while time.monotonic() < end:
        a = a @ a


def p50(once):
    times, end = [], time.monotonic() + 0.8 * SECONDS
    while time.monotonic() < end:
        begin = time.perf_counter()
        once()
        times.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(times))


def connect(comm, address):
    if comm.rank == FAR:
        listener = socket.create_server(("", 0))
        comm.send(listener.getsockname()[1], NEAR)
        return listener.accept()[0]
    if comm.rank == NEAR:
        wire = socket.create_connection((address, comm.recv(source=FAR)))
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return wire


def send(wire, more=b"+"):
    wire.sendall(more * x.nbytes)
    wire.recv(x.nbytes, socket.MSG_WAITALL)


def send_back(wire):
    more = True
    while more:
        ball = wire.recv(x.nbytes, socket.MSG_WAITALL)
        wire.sendall(ball)
        more = ball.startswith(b"+")


def phase(case, how, comm, twice, wire):
    if comm.rank == BUSY and how == "computing":
        return compute()
    if case == "message" and comm.rank == NEAR:
        result = p50(lambda: send(wire))
        send(wire, more=b".")
        return result
    if case == "message" and comm.rank == FAR:
        return send_back(wire)
    if comm.rank == {"near": NEAR, "far": FAR}.get(case):
        return p50(lambda: twice(x, out=y))


with mpiserve.open() as session:
    comm, twice = session.comm, session.service("twice")
    wire = connect(comm, sys.argv[2])
    begin = comm.bcast(time.monotonic() + PERIOD)  # the hosts share the clock
    bind(int(os.environ["OWN_CORE" if comm.rank == BUSY else "SHARED_CORE"]))
    for number in range(int(sys.argv[1])):
        for case in ("near", "far", "message"):
            order = ("sleeping", "computing")
            for how in order if number % 2 else reversed(order):
                time.sleep(max(0, begin - time.monotonic()))
                begin += PERIOD
                result = phase(case, how, comm, twice, wire)
                if result:
                    print(json.dumps([case, how, number, result]), flush=True)
"""


def compare(text):
    """Return the p50 beside a neighbour that sleeps, in µs, and how it changes, by case."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("[")]
    found = {(case, how, number): p50 for case, how, number, p50 in rows}
    assert len(found) == 3 * 2 * ROUNDS
    compared = {}
    for case in ("near", "far", "message"):
        sleeping = [found[case, "sleeping", number] for number in range(ROUNDS)]
        computing = [found[case, "computing", number] for number in range(ROUNDS)]
        ratios = [b / a for a, b in zip(sleeping, computing, strict=True)]
        compared[case] = (statistics.median(sleeping), statistics.median(ratios))
        print(
            f"{case}: p50 {compared[case][0]:.1f} us, computing / sleeping "
            f"{compared[case][1]:.3f} (rounds: {' '.join(f'{r:.2f}' for r in sorted(ratios))})"
        )
    return compared


@pytest.fixture
def one_group():
    """Let the kernel share cores out among ranks, not among hosts.

    It makes a group of each session, so of the ranks of each host. A group that computes on one
    core has less of a share on the others: the head waited for the asker of the other host, which
    in truth has cores of its own. Open MPI: 5.4 switches between processes per request beside a
    neighbour that sleeps and 2.5 beside one that computes, and p50 1.4 to 2.4 times as long; with
    one group 7.4 and 7.4.
    """
    if not GROUPS.exists():
        yield
        return
    before = GROUPS.read_text()
    GROUPS.write_text("0")
    yield
    GROUPS.write_text(before)


@long
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("one_group")
def test_it_changes_the_p50_of_others_by_less_than_a_fifth(cluster, on_hosts, tmp_path):
    write(tmp_path, PROGRAM)
    (tmp_path / "bind.py").write_text(BIND)
    (tmp_path / "model.py").write_text(BOUND_MODEL)
    shared, own = (str(core) for core in sorted(os.sched_getaffinity(0))[:2])
    done = on_hosts(
        {"n1": 3, "n2": 1},
        ["-n", 1, *SERVE, "c.toml"],
        ["-n", 3, PYTHON, "sim.py", ROUNDS, cluster.address("n2")],
        timeout=300,
        env={
            "SHARED_CORE": shared,
            "OWN_CORE": own,
            "PYTHONPATH": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0
    compared = compare(done.stdout)
    machine = max(1, compared["message"][1])
    assert compared["near"][1] < 1.2 * machine
    assert compared["far"][1] < 1.2 * machine
