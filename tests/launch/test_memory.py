"""Where memory is short: /dev/shm, control groups; and where ranks do not see each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from coupling import CONFIG, PYTHON, RUN, SERVE, is_mpich, lines, right, write

AUTO = {"MPISERVE_TRANSPORT": "auto"}  # the memory of rma is MPI's


# 64 MiB is what containers have; rank 0 fills it when the session is open.
SMALL = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
FULL = """\
import errno
import os

import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank = session.comm.rank
    if rank == 0:
        with open("/dev/shm/full", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    session.comm.Barrier()
    twice = session.service("twice")
    for rows in [1, 64, 300_000, 2_000_000]:
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) + rank
        assert (twice(x) == 2 * x).all(), (rank, rows)
    assert not [name for name in os.listdir("/dev/shm") if "mpiserve" in name]
    print(f"simulation rank {rank} of {session.comm.size} is right", flush=True)
"""
LARGE = CONFIG.replace("max_batch_rows = 64", "max_batch_rows = 2000000")
GROUPS = Path("/sys/fs/cgroup/memory")  # of version 1; version 2 is in tests/c/test_free_memory.c
LIMIT = 1 << 29
# 8 times these rows of 24 bytes, for one client.
HUNGRY = CONFIG.replace("max_batch_rows = 64", f"max_batch_rows = {LIMIT // 96}")
HUNGRY += f"pool_bytes = {2 * LIMIT}\n"


def unshare(kind: str) -> list[str]:
    """Return a command that runs another one in new namespaces; skip where that is not allowed."""
    command = ["unshare", kind]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip(f"unshare {kind} is not allowed here")
    return command


def test_a_small_and_a_full_dev_shm_do_not_matter(mpiexec, tmp_path):
    write(tmp_path, FULL, LARGE)
    hidden = [*unshare("--mount"), "sh", "-c", SMALL, "sh"]
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], wrapped=hidden, env=AUTO)
    assert done.returncode == 0
    assert lines(done.stdout) == right(2)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with a limit of memory."""
    made = GROUPS / f"mpiserve-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    yield made
    deadline = time.monotonic() + 10
    while (made / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)  # MPICH's launcher does not wait for the end of ranks that it kills
    made.rmdir()


def test_the_limit_of_a_control_group_is_named_by_every_rank(mpiexec, tmp_path, group):
    write(tmp_path, "import mpiserve\nmpiserve.open()\n", HUNGRY)
    join = ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"]
    simulation = ["-n", 1, PYTHON, "-m", "mpiserve", "run", "c.toml", "sim.py"]
    done = mpiexec([*simulation, ":", "-n", 1, *join, *SERVE, "c.toml"], env=AUTO)
    assert done.returncode != 0
    assert "bytes of memory are needed and" in done.stderr
    assert f"memory.limit_in_bytes of the control group /{group.name}" in done.stderr


@pytest.mark.every_mpi
@pytest.mark.skipif(is_mpich(), reason="MPICH itself (UCX) does not start in such a world")
def test_a_rank_in_a_pid_namespace_of_its_own_gets_an_error(mpiexec, tmp_path):
    own = [*unshare("--pid"), "--fork", "--kill-child", "--mount-proc"]
    write(tmp_path, "import mpiserve\nmpiserve.open()\n")
    done = mpiexec(["-n", 1, *own, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"], env=AUTO)
    assert done.returncode != 0
    assert "PID namespaces (containers) of their own. Or set MPISERVE_TRANSPORT=rma" in done.stderr
