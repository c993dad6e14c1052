"""A service that keeps answers: what one host has asked for is kept for the other one."""

from __future__ import annotations

import pytest
from coupling import CONFIG, PYTHON, SERVE, lines, write

# Rank 0 is on the host of the head, the others are not. Each in turn is the first to ask.
ASKS = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, comm = session.service("twice"), session.comm
    how = session.info()["transports"]["twice"]
    assert how == ("shared" if comm.rank == 0 else "rma"), how
    twice(np.full((1, 3), -1 - comm.rank, np.float32))
    comm.Barrier()
    for turn, rows in enumerate((2, 60, 200)):  # in a slot, in leased rows, in pieces
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) + 1000 * turn
        for rank in range(comm.size):
            if comm.rank == (turn + rank) % comm.size:
                request = twice.submit(x)
                assert (request.result(timeout=60) == 2 * x).all()
                assert (request.stats["batch_requests"] == 0) == (rank > 0), request.stats
            comm.Barrier()
    for rank in range(comm.size):
        x = np.arange(180, dtype=np.float32).reshape(60, 3) + 1000
        x[::7, 0] = -10 - rank
        if comm.rank == rank:
            request = twice.submit(x)
            assert (request.result(timeout=60) == 2 * x).all()
            assert request.stats["batch_rows"] == len(x[::7]), request.stats
        comm.Barrier()
    print(f"rank {comm.rank} is right", flush=True)
"""


@pytest.mark.every_mpi
@pytest.mark.takes_long
def test_what_one_host_has_asked_for_is_kept_for_the_other(on_hosts, tmp_path):
    write(tmp_path, ASKS, CONFIG + "cache_rows = 1000\n")
    done = on_hosts(
        {"n1": 2, "n2": 2},
        ["-n", 1, PYTHON, "sim.py"],
        ["-n", 1, *SERVE, "c.toml"],
        ["-n", 2, PYTHON, "sim.py"],
    )
    assert done.returncode == 0
    assert lines(done.stdout) == [f"rank {rank} is right" for rank in range(3)]
    kept, new = 2 * 262 + 3 * 51, 3 + 262 + 3 * 9
    assert f"{kept} of {kept + new} rows" in done.stderr
