"""What MPISERVE_PROFILE=trace keeps of a job, and what `trace` makes of it."""

from __future__ import annotations

import json
import subprocess
import sys

import chrome_trace
import pytest
from coupling import RUN, write

from mpiserve.observe import spans, trace

TRACE = {"MPISERVE_PROFILE": "trace"}
PARTS = "mpiserve-profile.parts"
CONFIG = """\
[service.twice]
backend = "python"
model = "model:twice"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
max_batch_rows = 64
max_delay_us = 1_000_000
"""
MODEL = """\
import os


def twice(x):
    if x[0, 0] == 7:
        os._exit(7)
    return 2 * x
"""
# The census waits for rank 1 in each of 10 steps; then the model dies, and is loaded anew.
SIMULATION = """\
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank, comm = session.comm.rank, session.comm
    twice = session.service("twice")
    x = np.ones((4, 3), np.float32)
    for step in range(10):
        session.step()
        time.sleep(0.03 * (rank == 1))
        twice(x)
    session.step()
    comm.Barrier()
    for pending in [twice.submit(x) for _ in range(3)]:
        pending.result()
    comm.Barrier()
    try:
        twice(7 * x)
    except mpiserve.ModelError:
        pass
    comm.Barrier()
    if rank == 0:
        session.reload("twice")
    comm.Barrier()
    twice(x)
"""


def run(mpiexec, folder, simulation=SIMULATION, env=TRACE):
    write(folder, simulation, CONFIG)
    (folder / "model.py").write_text(MODEL)
    return mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], env=env)


def program(folder, *args):
    command = [sys.executable, "-m", "mpiserve", "trace", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(60)
def test_each_request_leads_to_its_batch_and_back(mpiexec, tmp_path):
    done = run(mpiexec, tmp_path)
    assert done.returncode == 0
    assert f"mpiserve: python -m mpiserve trace merge {PARTS}" in done.stderr
    said = program(tmp_path, "merge", PARTS, "-o", "t.json")
    assert "t.json: 45 requests, " in said and "were dropped" not in said
    found = chrome_trace.parse(tmp_path / "t.json")
    assert set(found.processes) == {0, 1, 2, 3}
    for rank in range(3):
        assert len(found.named(rank, "request twice")) == 15
        assert len(found.named(rank, "time step")) == 11
    answered = [one for rank in range(3) for one in found.named(rank, "request twice")]
    answered = [one for one in answered if "code" not in one["args"]]
    assert len(found.flows) == len(answered) == 42
    batches = found.named(3, "batch twice")
    late = [one for one in batches if one["args"].get("last rank") == 1]
    assert len(late) >= 8 and all(one["args"]["waited us"] > 1e4 for one in late[:8])

    # The engine of each batch is that of its requests, which wait for it.
    traces = trace.read([tmp_path / PARTS])
    of = {one.key: one for one in spans.batches(traces)}
    for one in spans.requests(traces):
        if one.answered:
            batch = of[one.key]
            assert one.sent <= batch.begin and batch.spans[-1][1] <= one.seen

    said = program(tmp_path, "view", PARTS, "--slowest", "12")
    assert "rank 1, " in said and "twice: swap" in said
    program(tmp_path, "export", PARTS, "--json", "all.json")
    assert len(json.loads((tmp_path / "all.json").read_text())["requests"]) == 45


ENDLESS = """\
import os
import signal

import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank = session.comm.rank
    twice = session.service("twice")
    for step in range(100):
        twice(np.full((2, 3), step + 10, np.float32))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        twice(np.ones((2, 3), np.float32))
"""


@pytest.mark.takes_long
@pytest.mark.timeout(60)
def test_a_small_ring_keeps_the_last_events_of_a_rank_that_is_killed(mpiexec, tmp_path):
    done = run(mpiexec, tmp_path, ENDLESS, TRACE | {"MPISERVE_PROFILE_EVENTS": "50"})
    assert done.returncode != 0
    traces = {one.rank: one for one in trace.read([tmp_path / PARTS])}
    assert set(traces) == {0, 1, 2, 3}
    killed = traces[1]
    assert killed.head["n_events"] == 64 and killed.head["written"] == 100
    assert len(killed.events) == 63 and killed.dropped == 37
    assert (killed.of(spans.REQUEST)["rows"] == 2).all()
    assert "the oldest events were dropped" in program(tmp_path, "merge", PARTS)
    chrome_trace.parse(tmp_path / "mpiserve-trace.json")
