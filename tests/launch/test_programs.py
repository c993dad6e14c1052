"""Programs that use a session in less common ways, each a job of its own."""

import json
import sys

import pytest
from coupling import first_is_quick

PYTHON = [sys.executable, "-m", "mpiserve"]

CONFIG = """
[service.double]
backend = "python"
model = "double:double"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 2] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 2] }]
"""

MODEL = """
def double(x):
    if (x == 13).any():
        raise ValueError("thirteen")
    return x * 2
"""

GOOD = """
import json, sys
import mpiserve
import numpy as np
from mpi4py import MPI

with mpiserve.open() as session:
    double = session.service("double")
    x = np.full((3, 2), session.comm.rank, np.float32)
    for _ in range(20):
        assert (double(x) == x * 2).all()
    assert session.comm.allreduce(1) == session.comm.size
    if session.comm.rank == 0:
        print(json.dumps(session.info() | {"argv": sys.argv[1:], "size": MPI.COMM_WORLD.size}))
"""


@pytest.fixture
def job(mpiexec, tmp_path):
    """Run a job in a folder with coupling.toml, double.py and sim.py."""

    def run(*args, config=CONFIG, model=MODEL, sim=GOOD, grace="20"):
        (tmp_path / "coupling.toml").write_text(config)
        (tmp_path / "double.py").write_text(model)
        (tmp_path / "sim.py").write_text(sim)
        return mpiexec(args, env={"MPISERVE_GRACE": grace})

    return run


def run_args(n, *args):
    return ["-n", n, *PYTHON, "run", "coupling.toml", "sim.py", *args]


def info_of(result):
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))


def assert_says_once(result, text):
    assert result.stderr.count(text) == 1


@pytest.mark.parametrize(
    "partition",
    [
        "",
        "[partition]\nranks = [0]",
        pytest.param("[partition]\nranks = [1]", marks=pytest.mark.takes_long),
    ],
)
def test_run_gives_the_script_to_the_simulation_ranks_only(job, partition):
    result = job(*run_args(3, "-v", "--steps", "4"), config=partition + CONFIG)
    assert result.returncode == 0
    info = info_of(result)
    assert info["argv"] == ["-v", "--steps", "4"]
    assert info["roles"] == {"simulation": 2, "inference": 1}
    assert info["services"][0]["engine"] == "double.double"
    assert info["counters"]["rma_to_simulation"] == 0
    assert_says_once(result, "40 requests, 0 failed")


def test_several_services_and_replicas_share_a_world(job):
    config = CONFIG + "replicas = 2\n" + CONFIG.replace("service.double", "service.other")
    result = job(*run_args(5), config=config)
    assert result.returncode == 0
    assert info_of(result)["transports"].keys() == {"double", "other"}
    assert info_of(result)["services"][0]["replicas"] == 2


SERVE = [*PYTHON, "serve", "coupling.toml"]
SIM = [sys.executable, "sim.py"]


def test_a_program_may_hold_both_roles_by_itself(job):
    sim = (
        "import mpiserve, numpy as np\n"
        "with mpiserve.open(config='coupling.toml') as session:\n"
        "    if session.role == 'inference':\n"
        "        assert session.serve()\n"
        "    else:\n"
        "        assert session.service('double')(np.ones((1, 2), np.float32)).sum() == 4\n"
    )
    assert job("-n", 3, *SIM, sim=sim).returncode == 0


def test_an_inference_rank_that_does_not_serve_blocks_no_other(job):
    sim = (
        "import mpiserve\n"
        "with mpiserve.open(config='coupling.toml') as session:\n"
        "    if session.role == 'simulation':\n"
        "        try:\n"
        "            session.service('double')\n"
        "        except mpiserve.ModelError as error:\n"
        "            print('told:', error)\n"
    )
    result = job("-n", 2, *SIM, sim=sim)
    assert result.returncode == 0
    assert "its rank closed the session without serving" in result.stdout


def test_more_replicas_than_ranks_that_serve_is_one_line_and_no_hang(job):
    config = CONFIG + "replicas = 3\n"
    sim = "import mpiserve\ntry:\n    with mpiserve.open() as s:\n        s.service('double')\n"
    sim += "except mpiserve.Error as error:\n    print('told:', error)\n"
    result = job("-n", 1, *SIM, ":", "-n", 2, *SERVE, config=config, sim=sim)
    assert result.returncode == 2
    assert_says_once(result, "mpiserve: coupling.toml: service.double.replicas: 3 replicas need 3")
    assert "told: " in result.stdout


@pytest.mark.takes_long
def test_an_exception_without_a_with_block_blocks_no_other(job):
    sim = "import mpiserve\nsession = mpiserve.open()\nif session.comm.rank == 0:\n    1 / 0\n"
    assert job(*run_args(3), sim=sim).returncode == 1
    assert job("-n", 2, *SIM, ":", "-n", 1, *SERVE, sim=sim).returncode == 1


@pytest.mark.takes_long
def test_an_exception_before_open_blocks_no_other(job):
    sim = "from mpi4py import MPI\nif MPI.COMM_WORLD.rank == 0:\n    1 / 0\n" + GOOD
    result = job(*run_args(3), sim=sim, grace="1")
    assert result.returncode not in (0, 124)
    assert "ZeroDivisionError" in result.stderr


def test_a_model_that_raises_answers_and_lives_on(job):
    sim = (
        "import mpiserve, numpy as np\n"
        "with mpiserve.open() as session:\n"
        "    double = session.service('double')\n"
        "    for value in (13, 13, 1):\n"
        "        try:\n"
        "            print(double(np.full((1, 2), value, np.float32)).sum())\n"
        "        except mpiserve.ModelError as error:\n"
        "            print('told:', error)\n"
    )
    result = job(*run_args(2), sim=sim)
    assert result.returncode == 0
    assert result.stdout.splitlines() == ["told: ValueError: thirteen"] * 2 + ["4.0"]
    assert_says_once(result, "Traceback")


MISUSE = {
    "mpiserve.open(MPI.COMM_SELF)": "under `run` the world of a session is MPI_COMM_WORLD",
    "mpiserve.open(config='coupling.toml')": "under `run` open takes no configuration",
    "mpiserve.open().close(); mpiserve.open()": "under `run` a program opens one session",
}


@pytest.mark.parametrize("call", first_is_quick(MISUSE))
def test_an_open_that_would_wait_for_ever_is_refused(job, call):
    result = job(*run_args(2), sim=f"import mpiserve\nfrom mpi4py import MPI\n{call}\n")
    assert result.returncode == 1
    assert MISUSE[call] in result.stderr
