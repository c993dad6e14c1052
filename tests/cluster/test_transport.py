"""The broker between hosts, over TCP."""

from __future__ import annotations

import json

import pytest
from cluster import many
from cluster.conftest import long
from coupling import PYTHON, RUN, SERVE, lines, right, write
from jobs import ROOT

EXAMPLE = ROOT / "examples/01_reacting_flow"

# Rank 0 is on the host of the head, the others are not. Rank 1 says nothing for two seconds, and
# the others count what they are answered meanwhile.
SILENT = """\
import statistics
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank, comm = session.comm.rank, session.comm
    twice = session.service("twice")
    x = np.ones((8, 3), np.float32)
    y = np.empty_like(x)

    def ask(seconds):
        times = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.perf_counter()
            twice(x, out=y)
            times.append(time.perf_counter() - begin)
        return times

    ask(0.5)
    comm.Barrier()
    alone = [] if rank == 1 else ask(2)
    comm.Barrier()
    if rank == 1:
        time.sleep(2)  # computing, for all that MPI knows: it calls nothing
        beside = []
    else:
        beside = ask(1.8)
    comm.Barrier()
    if rank != 1:
        counters = session.info()["counters"]
        how = session.info()["transports"]["twice"]
        print(f"rank {rank} {how}: {len(beside)} answers, longest {max(beside):.3f} s, p50 "
              f"{1e6 * statistics.median(beside):.0f} us", flush=True)
        assert max(beside) < 1.5 and len(beside) > 20
        assert counters["rma_to_simulation"] == 0
    assert session.info()["transports"]["twice"] == ("shared" if rank == 0 else "rma")
"""


@pytest.mark.every_mpi
@pytest.mark.timeout(180)
@pytest.mark.takes_long
def test_each_of_ten_thousand_requests_is_answered_once(on_hosts, tmp_path):
    test = [ROOT / "tests/mpi/test_many_requests.py", "-x", "--with-mpi", "--ranks", 9]
    quiet = ["-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    folder = {"MPISERVE_TEST_DIR": str(tmp_path / "reports")}
    # Two clients share the host of the four heads, three reach them over TCP.
    slots = {"n1": 3, "n2": 6}
    command = ["-n", 9, PYTHON, "-m", "pytest", *quiet, *test]
    done = on_hosts(slots, *[command], timeout=150, env=folder)
    assert done.returncode == 0
    assert done.stdout.count("1 passed") == 9


@long
@pytest.mark.timeout(180)
def test_each_of_ten_thousand_requests_of_two_programs_is_answered_once(on_hosts, tmp_path):
    clients, heads = many.run(on_hosts, tmp_path)
    over = ["rma"] * 3 + ["shared"] * 2
    assert clients == [f"client over {transport}: 2000 requests" for transport in over]
    assert len(heads) == 4 and min(heads) > 0 and sum(heads) == 10_000


ONE_PROGRAM = (["-n", 4, *RUN, EXAMPLE / "coupling.toml", EXAMPLE / "simulate.py"],)
TWO_PROGRAMS = (
    ["-n", 3, PYTHON, EXAMPLE / "simulate.py"],
    ["-n", 1, *SERVE, EXAMPLE / "coupling.toml"],
)


@pytest.mark.takes_long
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "programs", [ONE_PROGRAM, pytest.param(TWO_PROGRAMS, marks=long)], ids=["run", "serve"]
)
def test_the_demo_runs_on_two_hosts(on_hosts, tmp_path, programs):
    arguments = ["--steps", 8, "--no-reference", "--out", tmp_path]
    first, *others = programs
    beside = {"PYTHONPATH": str(EXAMPLE)}  # a program of its own finds the modules beside it so
    done = on_hosts({"n1": 2, "n2": 2}, [*first, *arguments], *others, timeout=100, env=beside)
    assert done.returncode == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["steps"], result["simulation_ranks"]) == (8, 3)


@pytest.mark.every_mpi
def test_two_programs_on_two_hosts_in_any_order(on_hosts, tmp_path):
    write(tmp_path)
    done = on_hosts(
        {"n1": 2, "n2": 2},
        ["-n", 1, PYTHON, "sim.py"],
        ["-n", 1, *SERVE, "c.toml"],
        ["-n", 2, PYTHON, "sim.py"],
    )
    assert done.returncode == 0
    assert lines(done.stdout) == right(3)


@pytest.mark.takes_long
def test_a_client_that_calls_nothing_delays_nobody(on_hosts, tmp_path):
    write(tmp_path, SILENT)
    done = on_hosts(
        {"n1": 2, "n2": 2}, ["-n", 1, *SERVE, "c.toml"], ["-n", 3, PYTHON, "sim.py"], timeout=60
    )
    assert done.returncode == 0
