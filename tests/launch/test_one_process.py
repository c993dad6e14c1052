"""A session without mpiexec: `mpiserve.local`, and `open` in a world of one rank."""

from __future__ import annotations

import re
import signal

import pytest
from coupling import CONFIG, PYTHON, RUN, alone, write
from gateway_job import until_true
from launch.test_deaths import running

# The warm-up costs most of the time of a start.
SERVICE = CONFIG.replace("rows = 64", "rows = 4\nrows = 'independent'\nwarmup = false")
TWO = (
    SERVICE
    + """
[service.copy]
backend = "echo"
replicas = 3
inputs = [{ name = "a", dtype = "float64", shape = [-1] }]
outputs = [{ name = "b", dtype = "float64", shape = [-1] }]

[partition]
ranks = [7, 8, 9, 10]
"""
)
BEGIN = """\
import os
import signal

import mpiserve
import numpy as np

x = np.arange(30, dtype=np.float32).reshape(10, 3)


def raised(function, *arguments):
    try:
        function(*arguments)
    except mpiserve.Error as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def child():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return int(file.read().split()[0])


"""


def ran(folder, text, *before, config=SERVICE, **env):
    """Run a program without a launcher; what it has printed, when it ended well."""
    write(folder, BEGIN + text, config)
    done = alone(*before, PYTHON, "sim.py", cwd=folder, env={"MPISERVE_TRANSPORT": "auto"} | env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LIKE_A_JOB = """\
with mpiserve.local("c.toml") as session:
    twice, copy = session.service("twice"), session.service("copy")
    print(session, session.comm.size)
    print(twice)
    assert (twice(x) == 2 * x).all() and twice.rows == "independent"
    out = np.empty_like(x)
    assert twice(x, out=out) is out and (out == 2 * x).all()
    assert (copy(np.arange(5.0)) == np.arange(5.0)).all()
    print(raised(twice, x.astype(str)))
    print(raised(session.service, "thrice"))
    print(session.info()["counters"]["requests"], twice.totals()["rows"], copy.replicas)
    session.unload("twice")
    print(raised(twice, x).split(":")[0], twice.state)
    session.reload("twice")
    assert (twice(x) == 2 * x).all()
print(session, raised(twice, x))
"""


def test_a_session_of_one_process_is_like_that_of_a_job(tmp_path):
    found = ran(tmp_path, LIKE_A_JOB, config=TWO)
    signature = "x float32 [-1, 3] -> y float32 [-1, 3]"
    assert found[:2] == [
        "<session of simulation rank 0 of 2, services: twice, copy> 1",
        f"<service 'twice' at rank 1, shared, ready: {signature}>",
    ]
    assert found[2].startswith("DtypeError: ") and "thrice" in found[3]
    assert found[4] == "7 20 1"  # two requests of three pieces, and one
    assert found[5] == "ModelError launched"
    closed = "Error: the session is closed"
    assert found[6:] == [f"<session of simulation rank 0 of 2, closed> {closed}"]


SEVERAL = """\
first, second = mpiserve.local("c.toml"), mpiserve.open(config="c.toml")
assert first is not second and child()
requests = [session.service("twice").submit(x) for session in (first, second)]
assert all((request.result() == 2 * x).all() for request in requests)
first.close()
assert (second.service("twice")(x) == 2 * x).all()
print("right")  # the second one is closed at exit
"""


@pytest.mark.takes_long
def test_a_process_has_several_and_open_makes_one(tmp_path):
    assert ran(tmp_path, SEVERAL) == ["right"]


@pytest.mark.takes_long
def test_a_job_of_one_rank_has_one(tmp_path, mpiexec):
    program = "session = mpiserve.open(config='c.toml')\nprint(session.service('twice')(x).sum())\n"
    write(tmp_path, BEGIN + program, SERVICE)
    done = mpiexec(["-n", 1, PYTHON, "sim.py"], env={"MPISERVE_TRANSPORT": "auto"})
    assert done.returncode == 0 and done.stdout == "870.0\n"


DEATH = """\
with mpiserve.local("c.toml") as session:
    twice = session.service("twice")
    os.kill(child(), signal.SIGKILL)
    print(raised(twice, x))
    twice.fallback(lambda x: x + 1)
    assert (twice(x) == x + 1).all() and session.lost()[0] == 1
print("closed", session.bereft)
"""


@pytest.mark.takes_long
def test_the_death_of_the_inference_process_is_an_error_and_a_fallback_answers(tmp_path):
    error, closed = ran(tmp_path, DEATH)
    assert error.startswith("PeerError: ") and "inference rank 1 (pid " in error
    assert closed == "closed False"


KILLED = """\
session = mpiserve.local("c.toml")
print(child(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.takes_long
def test_the_inference_process_ends_with_the_other_one(tmp_path):
    write(tmp_path, BEGIN + KILLED, SERVICE)
    done = alone(PYTHON, "sim.py", cwd=tmp_path, env={"MPISERVE_TRANSPORT": "auto"})
    assert done.returncode == -signal.SIGKILL
    until_true(lambda: not running([int(done.stdout)]))


WRONG = """\
print(raised(mpiserve.local, "none.toml"))
config = mpiserve.Config.load("c.toml")
service = config.service["twice"]
config.service["twice"] = service.model_copy(update={"tensor_parallel": 2})
print(raised(mpiserve.local, config))
config.service["twice"] = service
os.environ["MPISERVE_TRANSPORT"] = "rma"
print(raised(mpiserve.local, config))
os.environ["MPISERVE_TRANSPORT"] = "auto"
os.environ["PYTHONHOME"] = "/nowhere"  # the process cannot start
print(raised(mpiserve.local, config))
"""


@pytest.mark.takes_long
def test_what_cannot_be_had_says_so(tmp_path):
    missing, parallel, rma, dead = ran(tmp_path, WRONG)
    assert missing.startswith("ConfigError: ") and "none.toml" in missing
    assert parallel.startswith("ConfigError: c.toml: service.twice.tensor_parallel: 2 ranks")
    assert "one process has one inference rank: use mpiexec" in parallel
    assert "MPISERVE_TRANSPORT is rma, which a session of one process does not have" in rma
    assert dead.startswith("PeerError: the inference process of this session has ended with status")


NO_MODEL = """\
with mpiserve.local("c.toml") as session:
    print(raised(session.service, "twice"))
"""


@pytest.mark.takes_long
def test_a_model_that_cannot_be_loaded_is_an_error_of_its_service(tmp_path):
    config = SERVICE.replace("model:twice", "model:thrice")
    (error,) = ran(tmp_path, NO_MODEL, config=config)
    assert error.startswith("ModelError: ") and "thrice" in error


FAILS_LATER = """\
from mpiserve import open as join

session = join()
if session.comm.rank == 0:
    mpiserve.local("c.toml").close()
    raise RuntimeError("my own fault")
twice = session.service("twice")
while not (told := raised(twice, x[:4])).startswith("PeerError"):
    pass
print(told)
"""


@pytest.mark.takes_long
def test_a_rank_of_a_job_that_had_one_tells_the_others_when_it_fails(tmp_path, mpiexec):
    write(tmp_path, BEGIN + FAILS_LATER, SERVICE)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], env={"MPISERVE_TRANSPORT": "auto"})
    assert done.returncode
    assert re.search("^PeerError: .*RuntimeError: my own fault", done.stdout, re.MULTILINE)


# While the model loads, which would take ten minutes, Ctrl-C comes.
LOADS_LONG = """
import os
import signal
import time

with open("pid") as file:
    os.kill(int(file.read()), signal.SIGINT)
time.sleep(600)
"""

INTERRUPTED = """\
with open("pid", "w") as file:
    file.write(str(os.getpid()))
try:
    mpiserve.local("c.toml")
except KeyboardInterrupt:
    print("interrupted")
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no process is left")
"""


def test_ctrl_c_ends_the_wait_for_a_model(tmp_path):
    (tmp_path / "slow.py").write_text(LOADS_LONG)
    config = SERVICE.replace("model:twice", "slow:twice")
    assert ran(tmp_path, INTERRUPTED, config=config) == ["interrupted", "no process is left"]
