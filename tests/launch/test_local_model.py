"""No replica lives, and local models answer: of simulations in Python and C, after real kills."""

from __future__ import annotations

from pathlib import Path

import pytest
from coupling import CONFIG, PYTHON, RUN, SERVE, compile_simulation, write
from launch.test_deaths import PIDS, SURVIVE, SURVIVES, TRANSPORTS
from launch.test_stopped import BEGIN

LOCAL = CONFIG + 'fallback = "local"\ncheck = "finite"\nrows = "independent"\nwarmup = false\n'
MODEL = """\
import os
import signal


def twice(x):
    if (x == 13).any():
        os.kill(os.getpid(), signal.SIGSEGV)
    y = 2 * x
    y[(x == 14).any(axis=1)] = float("nan")
    return y
"""

# In turn: a local model that answers, also a request of many batches; that crashes; rows that fail
# the check; the function behind it; and the replica again.
STOPPED = (
    BEGIN
    + """\
def ask(x, source, local, fallback):
    request = twice.submit(x)
    result, stats = request.result(timeout=60), request.stats
    assert (stats["source"], stats["local_rows"], stats["fallback_rows"]) == (
        source, local, fallback), stats
    return result


def check():
    for rows in (200, 2, 64):
        assert (ask(x[:rows], "local", rows, 0) == 2 * x[:rows]).all()
    try:
        twice(crash)
    except mpiserve.PeerError as error:
        print(error, flush=True)
    assert (ask(x[:2], "local", 2, 0) == 2 * x[:2]).all()
    twice.fallback(lambda x: x + 40)
    assert (ask(crash, "fallback", 0, 2) == 53).all()
    mixed = np.array([[14, 1, 2], [3, 4, 5]], np.float32)
    assert (ask(mixed, "fallback", 1, 1) == [[54, 41, 42], [6, 8, 10]]).all()
    counters = session.info()["counters"]
    found = [counters[key] for key in ("local_answers", "fallbacks", "failed_rows", "errors")]
    assert found == [8, 2, 1, 1], found
    assert twice.totals()["local_rows"] == 200 + 2 + 64 + 2 + 1


session = mpiserve.open()
twice = session.service("twice")
x = np.arange(100, 700, dtype=np.float32).reshape(200, 3)
crash = np.full((2, 3), 13, np.float32)
assert (ask(x[:4], "model", 0, 0) == 2 * x[:4]).all()
stop(1)
try:
    check()
finally:
    go_on(1)
end = time.monotonic() + 20
while (request := twice.submit(x[:2])).result() is not None and time.monotonic() < end:
    if request.stats["source"] == "model":
        break
assert request.stats["source"] == "model"
session.close()
print("closed", flush=True)
"""
)


def processes(mark: str) -> dict[int, str]:
    """The commands of the processes whose environment has a text, by number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


@pytest.fixture
def env(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PIDS)
    yield {"PYTHONPATH": str(tmp_path), "MPISERVE_STOPPED_TIMEOUT": "0.3"}
    assert not processes(str(tmp_path))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_local_model_answers_while_the_only_replica_is_stopped(mpiexec, tmp_path, env, transport):
    write(tmp_path, STOPPED, LOCAL)
    (tmp_path / "model.py").write_text(MODEL)
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], env=env | {"MPISERVE_TRANSPORT": transport})
    assert done.returncode == 0
    assert "closed" in done.stdout
    stopped = "has been stopped by a signal for "
    died = "the local model failed: the model's process was killed by SIGSEGV"
    assert stopped in done.stdout and died in done.stdout
    log = [line for line in done.stderr.splitlines() if "local model" in line]
    assert len(log) == 3, log
    assert "rank 0: service twice: a local model is started, since no replica answers" in log[0]
    assert stopped in log[0]
    assert "rank 0: service twice: its local model answers after " in log[1]
    assert died in log[2] and "the fallback <lambda> answers 2 rows" in log[2]


# It ends at once, so that what it leaves would be seen.
C = """\
#include <mpi.h>
#include <mpiserve.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { ROWS = 200 };

static float x[ROWS * 3], y[ROWS * 3];

/* Answers by the way that answered it; -1: wrong. */
static int ask(mpiserve_service *service, int rows) {
  mpiserve_tensor in = {NULL, x, MPISERVE_FLOAT32, 2, {rows, 3}}, out = in;
  mpiserve_stats stats;
  out.data = y;
  memset(y, 0, sizeof y);
  if (mpiserve_infer(service, 1, &in, 1, &out, 60.0, &stats)) {
    fprintf(stderr, "%s\\n", mpiserve_last_error());
    return -1;
  }
  for (int i = 0; i < 3 * rows; i++)
    if (y[i] != 2 * x[i]) return -1;
  return stats.source == MPISERVE_LOCAL && stats.local_rows != rows ? -1 : (int)stats.source;
}

int main(int argc, char **argv) {
  mpiserve_session *session;
  mpiserve_service *service;
  int source = 0, rank;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (int i = 0; i < ROWS * 3; i++) x[i] = 100.0f + (float)i;
  if (mpiserve_open(MPI_COMM_WORLD, MPISERVE_SIMULATION, &session)) return 1;
  if (mpiserve_service_find(session, "twice", &service)) return 1;
  if (ask(service, ROWS) != MPISERVE_MODEL) return 2;
  if (fopen("c.ready", "w") == NULL) return 3;
  while (source == MPISERVE_MODEL) source = ask(service, 2);
  if (source != MPISERVE_LOCAL || ask(service, ROWS) != MPISERVE_LOCAL) return 4;
  printf("rank %d is right, close is %d\\n", rank, mpiserve_close(session));
  fflush(stdout);
  _exit(0);
}
"""

KILLED = (
    BEGIN
    + """\
session = mpiserve.open()
twice = session.service("twice")
x = np.full((200, 3), 7, np.float32)
assert (twice(x) == 14).all()
end = time.monotonic() + 30
while not os.path.exists("c.ready") and time.monotonic() < end:
    time.sleep(0.01)
send(2, signal.SIGKILL)
for rows in (2, 200) * 3:
    request = twice.submit(x[:rows])
    assert (request.result(timeout=60) == 14).all()
assert request.stats["source"] == "local"
session.close()
print("closed", session.bereft, flush=True)
os._exit(0)
"""
)


@pytest.mark.takes_long
@SURVIVES
def test_local_models_answer_when_the_only_replica_is_killed(mpiexec, tmp_path, env):
    write(tmp_path, KILLED, LOCAL)
    (tmp_path / "sim.c").write_text(C)
    program = compile_simulation(tmp_path / "sim.c")
    ranks = [[program], [PYTHON, "sim.py"], [*SERVE, "c.toml"]]
    command = [word for rank in ranks for word in (":", "-n", 1, *rank)][1:]
    done = mpiexec([*SURVIVE, *command], env=env | {"MPISERVE_TRANSPORT": "rma"})
    assert done.returncode == 0
    assert "rank 0 is right, close is -16" in done.stdout
    assert "closed True" in done.stdout
    for rank in range(2):
        text = f"rank {rank}: service twice: a local model is started, since no replica answers: "
        assert text in done.stderr
    assert "inference rank 2" in done.stderr


# The simulation is killed while its local model computes: nothing of it stays.
ORPHANS = (
    BEGIN
    + """\
session = mpiserve.open()
twice = session.service("twice")
stop(1)
twice(np.ones((1, 3), np.float32), timeout=60)
print("answered", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
)


def test_a_local_model_ends_with_its_rank(mpiexec, tmp_path, env):
    write(tmp_path, ORPHANS, LOCAL)
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], env=env)
    assert done.returncode != 0
    assert "answered" in done.stdout
