"""Ranks are killed, and the others go on where the launcher lets them; or the launcher is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import mpijob
import pytest
from coupling import CONFIG, PYTHON, RUN, SERVE, compile_simulation, first_is_quick, is_mpich, write

REPLICAS = CONFIG + 'replicas = 2\nrows = "independent"\nmax_delay_us = 1000\n'
SURVIVE = ["-disable-auto-cleanup"] if is_mpich() else ["--with-ft", "ulfm"]
# Each rank of a job writes its number into a file of its rank.
PIDS = """\
import os

rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")
with open(f"pid.{rank}.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"pid.{rank}.new", f"pid.{rank}")
"""

# In step 50 somebody is killed, maybe this rank itself; all others get all their answers, small
# ones, which lie in slots, large ones, which lie in leased rows, and those in memory of the head.
KILLS = """\
import os
import signal
import sys
import time

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    rank, late = session.comm.rank, 0.0
    for step in range(100):
        if step == 50 and rank == 1:
            os.kill(int(open(f"pid.{sys.argv[1]}").read()), signal.SIGKILL)
        if step % 10 == 0:
            here = twice.empty_input(60)
        x = here if step % 3 == 0 else np.empty((60 if step % 3 == 1 else 2, 3), np.float32)
        x[:] = 10 * step + rank
        begin = time.monotonic()
        assert (twice(x, timeout=30) == 20 * step + 2 * rank).all()
        late = max(late, time.monotonic() - begin)
    assert late < 10, late
    print(f"rank {rank} is right", flush=True)
print(f"rank {rank} has left", flush=True)
"""

SURVIVES = pytest.mark.skipif(is_mpich(), reason="MPICH 5 kills all when one dies")


TRANSPORTS = first_is_quick(["shared", "rma"])


@pytest.fixture
def pids(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PIDS)
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.every_mpi
@SURVIVES
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_other_replica_answers_when_one_is_killed(mpiexec, tmp_path, pids, transport):
    write(tmp_path, KILLS, REPLICAS)
    env = pids | {"MPISERVE_TRANSPORT": transport}
    done = mpiexec([*SURVIVE, "-n", 4, *RUN, "c.toml", "sim.py", 3], env=env)
    assert done.returncode == 0
    for rank in range(2):
        assert f"rank {rank} is right" in done.stdout
        assert f"rank {rank} has left" in done.stdout
    pid = (tmp_path / "pid.3").read_text()
    assert f"ended without it: inference rank 3 (pid {pid} on host " in done.stderr


# The same, with answers that are two steps old.
PACED = """\
import os
import signal
import sys

import mpiserve
import numpy as np

with mpiserve.open() as session:
    pace, rank = session.service("twice").pace(lag=2), session.comm.rank
    for step in range(100):
        if step == 50 and rank == 1:
            os.kill(int(open(f"pid.{sys.argv[1]}").read()), signal.SIGKILL)
        y = pace(np.full((60, 3), 10 * step + rank, np.float32), timeout=30)
        assert (y == 20 * max(step - 2, 0) + 2 * rank).all(), step
        assert pace.age == min(step, 2)
    print(f"rank {rank} is right", flush=True)
"""


@SURVIVES
@pytest.mark.takes_long
@pytest.mark.parametrize("transport", ["shared", "rma"])
def test_steps_get_their_answers_when_a_replica_is_killed(mpiexec, tmp_path, pids, transport):
    write(tmp_path, PACED, REPLICAS)
    env = pids | {"MPISERVE_TRANSPORT": transport}
    done = mpiexec([*SURVIVE, "-n", 4, *RUN, "c.toml", "sim.py", 3], env=env)
    assert done.returncode == 0
    for rank in range(2):
        assert f"rank {rank} is right" in done.stdout


@pytest.mark.every_mpi
@SURVIVES
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_other_simulation_ranks_go_on_when_one_is_killed(mpiexec, tmp_path, pids, transport):
    write(tmp_path, KILLS)
    env = pids | {"MPISERVE_TRANSPORT": transport}
    done = mpiexec([*SURVIVE, "-n", 4, *RUN, "c.toml", "sim.py", 1], env=env)
    assert done.returncode == 0
    for rank in (0, 2):
        assert f"rank {rank} is right" in done.stdout
    assert "rank 1 is right" not in done.stdout


# All answers come, and a spare takes the place of the dead replica.
SPARED = KILLS.replace(
    "    print(f",
    """\
    assert session.info()["counters"]["rerouted"] <= 1
    replicas, begin = int(sys.argv[2]), time.monotonic()
    while [s.state in ("ready", "busy") for s in twice.states()].count(True) < replicas:
        assert (twice(np.ones((2, 3), np.float32), timeout=30) == 2).all()
        assert time.monotonic() - begin < 30, twice.states()
    print(f""",
    1,
)


# MPICH tells nobody: the kernel of the node does, and the shell hides the signal from MPICH.
BEHIND_SHELL = ["sh", "-c", 'trap "" USR1; "$@"; s=$?; exit $((s > 128 ? 7 : s))', "sh"]


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.takes_long)])
def test_a_spare_takes_the_place_of_a_replica_that_is_killed(mpiexec, tmp_path, pids, replicas):
    config = CONFIG + f'replicas = {replicas}\nrows = "independent"\n[partition]\nspares = 1\n'
    write(tmp_path, SPARED, config)
    shell, env, status = [], pids, 0
    if is_mpich():
        shell, env, status = BEHIND_SHELL, pids | {"MPISERVE_TRANSPORT": "shared"}, 7
    command = [*SURVIVE, "-n", 3 + replicas, *shell, *RUN, "c.toml", "sim.py", 2, replicas]
    done = mpiexec(command, env=env)
    assert done.returncode == status
    for rank in range(2):
        assert f"rank {rank} is right" in done.stdout
        assert f"rank {rank} has left" in done.stdout
    assert "takes the place of rank 2" in done.stderr


# Its process dies when it is loaded for the third time, which a spare does that must serve.
ONCE_MORE = """\
import os


class Model:
    def __init__(self):
        with open("loads", "a") as file:
            file.write(".")
        if os.path.getsize("loads") == 3:
            os._exit(9)

    def __call__(self, x):
        return 2 * x
"""


@pytest.mark.takes_long
def test_a_spare_whose_process_dies_while_it_loads_loads_once_more(mpiexec, tmp_path, pids):
    config = CONFIG + 'rows = "independent"\n[partition]\nspares = 1\n'
    (tmp_path / "once_more.py").write_text(ONCE_MORE)
    write(tmp_path, SPARED, config.replace("model:twice", "once_more:Model"))
    shell, env, status = [], pids, 0
    if is_mpich():
        shell, env, status = BEHIND_SHELL, pids | {"MPISERVE_TRANSPORT": "shared"}, 7
    done = mpiexec([*SURVIVE, "-n", 4, *shell, *RUN, "c.toml", "sim.py", 2, 1], env=env)
    assert done.returncode == status
    assert (tmp_path / "loads").read_text() == "...."
    for rank in range(2):
        assert f"rank {rank} is right" in done.stdout
    assert "loaded once more: the model's process has ended with status 9" in done.stderr


LAST = """\
import os
import signal
import time

import mpiserve
import numpy as np

session = mpiserve.open()
twice = session.service("twice")
x = np.ones((2, 3), np.float32)
assert (twice(x) == 2).all()
session.comm.Barrier()
if session.comm.rank == 0:
    os.kill(int(open("pid.2").read()), signal.SIGKILL)
begin = time.monotonic()
try:
    while time.monotonic() - begin < 30:
        twice(x, timeout=30)
except mpiserve.PeerError as error:
    assert time.monotonic() - begin < 10
    print(error, flush=True)
try:
    twice(x, timeout=30)
except mpiserve.PeerError:
    print("again", flush=True)
session.close()
assert session.bereft
"""


@pytest.mark.takes_long
@SURVIVES
def test_a_request_to_the_only_replica_says_that_it_is_dead(mpiexec, tmp_path, pids):
    write(tmp_path, LAST)
    done = mpiexec([*SURVIVE, "-n", 3, *RUN, "c.toml", "sim.py"], env=pids)
    assert done.returncode == 0
    pid = (tmp_path / "pid.2").read_text()
    text = f"service 'twice': inference rank 2 (pid {pid} on host {os.uname().nodename}) has died"
    assert done.stdout.count(text) == 2
    assert done.stdout.count("again") == 2


FINALIZES = """\
import mpiserve
import numpy as np
from mpi4py import MPI

session = mpiserve.open()
x = np.ones((2, 3), np.float32)
assert (session.service("twice")(x) == 2).all()
rank = session.comm.rank
if rank == 1:
    MPI.Finalize()
else:
    session.close()
print(f"rank {rank} goes on", flush=True)
"""

FINALIZES_C = """\
#include <mpi.h>
#include <mpiserve.h>

int main(int argc, char **argv) {
  mpiserve_session *session;
  MPI_Init(&argc, &argv);
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session)) MPI_Abort(MPI_COMM_WORLD, 1);
  return MPI_Finalize();
}
"""


def test_mpi_finalize_closes_what_is_open(mpiexec, tmp_path):
    write(tmp_path, FINALIZES)
    (tmp_path / "sim.c").write_text(FINALIZES_C)
    program = compile_simulation(tmp_path / "sim.c")
    done = mpiexec(["-n", 2, PYTHON, "sim.py", ":", "-n", 1, *SERVE, "c.toml"])
    assert done.returncode == 0
    assert done.stdout.count("goes on") == 2
    assert mpiexec(["-n", 2, program, ":", "-n", 1, *SERVE, "c.toml"]).returncode == 0


WAITS = """\
import time

import mpiserve

with mpiserve.open() as session:
    print("open", flush=True)
    time.sleep(600)
"""


def shared_files() -> set[str]:
    return set(os.listdir("/dev/shm"))


def running(pids: list[int]) -> list[int]:
    """Those of the processes that run; a zombie does not."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid
        for pid, stat in states.items()
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


def test_nothing_is_left_when_the_launcher_is_killed(tmp_path, pids):
    write(tmp_path, WAITS)
    env = mpijob.settings() | pids
    command = [env["MPIEXEC"], "-n", "3", *RUN, "c.toml", "sim.py"]
    before = shared_files()
    launcher = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        for _ in range(2):
            assert launcher.stdout.readline() == "open\n"
        ranks = [int((tmp_path / f"pid.{rank}").read_text()) for rank in range(3)]
        assert running(ranks) == ranks
        mine = {name for name in shared_files() - before if uses(name, ranks)}
    finally:
        launcher.kill()
    end = time.monotonic() + 30
    while running(ranks) and time.monotonic() < end:
        time.sleep(0.1)
    left = running(ranks)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    # The proxies of MPICH kill before a rank can remove anything: `doctor --clean` finds it.
    assert is_mpich() or not mine & shared_files()
    for name in mine & shared_files():
        Path("/dev/shm", name).unlink()


def uses(name: str, ranks: list[int]) -> bool:
    return any(f"/dev/shm/{name}" in Path(f"/proc/{pid}/maps").read_text() for pid in ranks)
