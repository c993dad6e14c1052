"""`python -m mpiserve run` and `serve`, each a job of its own, through good and bad days."""

import json
import re
import sys

import pytest

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


@pytest.mark.parametrize("partition", ["", "[partition]\nranks = [0]", "[partition]\nranks = [1]"])
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


@pytest.mark.parametrize(
    "parts",
    [
        [(2, SIM), (1, SERVE)],
        [(1, SERVE), (2, SIM)],
        [(1, SIM), (1, SERVE), (1, SIM)],
    ],
    ids=["before", "after", "interleaved"],
)
def test_serve_works_beside_another_program_wherever_it_is_in_the_world(job, parts):
    args = []
    for n, command in parts:
        args += [":"] * bool(args) + ["-n", n, *command]
    result = job(*args)
    assert result.returncode == 0
    assert info_of(result)["roles"] == {"simulation": 2, "inference": 1}


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


def test_an_inference_rank_that_does_not_serve_holds_nobody(job):
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


WRONG = {
    "unknown key": (
        "model =",
        "modle =",
        "service.double.modle: unknown key (did you mean 'model'",
    ),
    "missing model": ('model = "double:double"\n', "", "service.double.model: missing"),
    "too many replicas": (
        "\ninputs",
        "\nreplicas = 3\ninputs",
        "3 replicas need 3 inference ranks",
    ),
    "a rank twice": ("\n[serv", "[partition]\nranks = [1, 1]\n[serv", "rank 1 is listed twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_ends_run_with_one_line_and_status_2(job, name):
    old, new, text = WRONG[name]
    result = job(*run_args(3), config=CONFIG.replace(old, new, 1))
    assert result.returncode == 2
    assert_says_once(result, "mpiserve: coupling.toml: ")
    assert text in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["unknown key", "missing model", "a rank twice"])
def test_a_wrong_configuration_of_serve_is_one_line_and_every_rank_learns_it(job, name):
    old, new, text = WRONG[name]
    sim = "import mpiserve\ntry:\n    mpiserve.open()\nexcept mpiserve.ConfigError as error:\n"
    sim += "    print('told:', error)\n"
    config = CONFIG.replace(old, new, 1)
    result = job("-n", 1, *SIM, ":", "-n", 2, *SERVE, config=config, sim=sim)
    assert result.returncode == 2
    assert_says_once(result, "mpiserve: coupling.toml: ")
    assert result.stdout.startswith("told: rank 1: coupling.toml: ")
    assert text in result.stdout


def test_more_replicas_than_ranks_that_serve_is_one_line_and_no_hang(job):
    config = CONFIG + "replicas = 3\n"
    sim = "import mpiserve\ntry:\n    with mpiserve.open() as s:\n        s.service('double')\n"
    sim += "except mpiserve.Error as error:\n    print('told:', error)\n"
    result = job("-n", 1, *SIM, ":", "-n", 2, *SERVE, config=config, sim=sim)
    assert result.returncode == 2
    assert_says_once(result, "mpiserve: coupling.toml: service.double.replicas: 3 replicas need 3")
    assert "told: " in result.stdout


def test_a_script_that_is_not_there_is_one_line(job):
    result = job("-n", 2, *PYTHON, "run", "coupling.toml", "nosuch.py")
    assert result.returncode == 2
    assert_says_once(result, "mpiserve: nosuch.py: no such file")


def test_a_script_that_opens_no_session_holds_nobody(job):
    assert job(*run_args(3), sim="print('done')").returncode == 0


def test_the_status_of_a_script_is_that_of_its_ranks(job):
    result = job(*run_args(3), sim="import mpiserve, sys\nmpiserve.open()\nsys.exit(7)")
    assert result.returncode == 7


FAILING = """
import mpiserve
import numpy as np

with mpiserve.open() as session:
    if session.comm.rank == 1:
        raise RuntimeError("lost a particle")
    {others}
"""


def test_an_exception_reaches_the_other_ranks_as_theirs(job):
    others = "while True: session.service('double')(np.ones((1, 2), np.float32))"
    result = job(*run_args(4), sim=FAILING.format(others=others))
    assert result.returncode == 1
    assert_says_once(result, "Traceback")
    assert result.stderr.count("ended, because simulation rank 1 ended with an error") == 2
    assert "RuntimeError: lost a particle (sim.py:7)" in result.stderr


def test_ranks_that_wait_for_a_failed_one_are_ended(job):
    result = job(*run_args(4), sim=FAILING.format(others="session.comm.Barrier()"), grace="1")
    assert result.returncode not in (0, 124)
    assert_says_once(result, "Traceback")
    assert re.search(
        r"rank 3: rank 1 ended with an error \(RuntimeError: lost a particle \(sim\.py:7\)\) and "
        r"2 simulation rank\(s\) did not leave within 1 s \(MPISERVE_GRACE\): aborting the job",
        result.stderr,
    )


def test_an_exception_without_a_with_block_holds_nobody(job):
    sim = "import mpiserve\nsession = mpiserve.open()\nif session.comm.rank == 0:\n    1 / 0\n"
    assert job(*run_args(3), sim=sim).returncode == 1
    assert job("-n", 2, *SIM, ":", "-n", 1, *SERVE, sim=sim).returncode == 1


def test_an_exception_before_open_holds_nobody(job):
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


def test_a_model_that_cannot_be_loaded_is_told_to_who_asks_for_it(job):
    sim = "import mpiserve\nwith mpiserve.open() as session:\n    session.service('double')\n"
    result = job(*run_args(3), sim=sim, model="raise OSError('no weights')")
    assert result.returncode == 1
    assert "could not be loaded: OSError: no weights" in result.stderr


def test_info_prints_once(mpiexec):
    result = mpiexec(["-n", 2, *PYTHON, "info"])
    assert result.returncode == 0
    assert result.stdout.count("MPI library") == 1
    assert "2 rank(s)" in result.stdout
