"""The test harness itself: what must fail fails, and what would hang ends."""

import shutil
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent

MODULE = """
import time
import pytest

@pytest.mark.roles(simulation=2, inference=1, order="interleaved")
def test_roles(world):
    assert world.roles == ["simulation", "inference", "simulation"]
    assert world.role == world.roles[world.comm.rank]

@pytest.mark.roles(simulation=1, inference=1)
def test_one_rank_fails(world):
    assert world.comm.rank == 0
    world.comm.Barrier()

@pytest.mark.timeout(3)
@pytest.mark.roles(simulation=2, inference=2)
def test_one_rank_never_comes(world):
    if world.comm.rank == 3:
        time.sleep(100)
    world.comm.Barrier()
"""


@pytest.fixture
def run_module(mpiexec, tmp_path):
    """Run the module above on n ranks as tests/run.py does; give the result and its seconds."""
    tests = tmp_path / "tests"
    (tests / "mpi").mkdir(parents=True)
    (tests / "mpi/test_module.py").write_text(MODULE)
    shutil.copy(TESTS.parent / "pyproject.toml", tmp_path)
    for name in ("conftest.py", "mpijob.py"):
        shutil.copy(TESTS / name, tests)

    def run(n, *options):
        command = [sys.executable, "-m", "pytest", "-x", "--with-mpi", "--color=no"]
        start = time.monotonic()
        result = mpiexec(
            ["-n", n, *command, *options, "tests/mpi"], env={"MPISERVE_TEST_DIR": "reports"}
        )
        return result, time.monotonic() - start

    return run


def test_a_test_gets_the_roles_that_it_declares(run_module):
    result, _ = run_module(3, "--ranks", 3)
    assert result.returncode == 0
    assert result.stdout.count("1 passed, 2 deselected") == 3


def test_too_few_ranks_fail(run_module):
    result, _ = run_module(2, "-k", "test_roles")
    assert result.returncode != 0
    assert "needs 3 ranks, and the world has 2" in result.stdout


def test_one_failing_rank_ends_the_world(run_module):
    result, seconds = run_module(2, "--ranks", 2)
    assert result.returncode not in (0, 124)
    assert seconds < 20


def test_a_hanging_rank_ends_the_world(run_module):
    result, seconds = run_module(4, "--ranks", 4)
    assert result.returncode not in (0, 124)
    assert seconds < 20


@pytest.mark.takes_long
def test_a_job_that_runs_out_of_time_is_stopped(mpiexec):
    start = time.monotonic()
    result = mpiexec(["-n", 3, "sleep", 100], timeout=2)
    assert result.returncode == 124
    assert time.monotonic() - start < 20
