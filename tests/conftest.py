"""What every test can use: the roles marker, the world fixture, the mpiexec fixture.

tests/run.py starts pytest once per module, number of ranks, transport and MPI, and reads the
report files that are written here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mpi4py
import mpijob
import pytest

# Inference ranks need no more, and a mix of levels corrupts MPICH worlds.
mpi4py.rc.thread_level = "serialized"

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or 0)
SIZE = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1)


class Roles(NamedTuple):
    """What @pytest.mark.roles(simulation=3, inference=1, order="tail") declares."""

    simulation: int
    inference: int
    order: str = "tail"

    @property
    def size(self) -> int:
        return self.simulation + self.inference

    def names(self) -> list[str]:
        """Return the role of each rank."""
        step = self.size / max(self.inference, 1)
        ranks = {
            "tail": range(self.simulation, self.size),
            "head": range(self.inference),
            "interleaved": [int((k + 0.5) * step) for k in range(self.inference)],
        }[self.order]
        return ["inference" if rank in ranks else "simulation" for rank in range(self.size)]


class World(NamedTuple):
    """The world of one test, seen from one rank."""

    comm: Any  # MPI.Comm; a duplicate, so that a test's messages stay its own
    roles: list[str]

    @property
    def role(self) -> str:
        return self.roles[self.comm.rank]


def roles_of(item: pytest.Item) -> Roles | None:
    mark = item.get_closest_marker("roles")
    return Roles(**mark.kwargs) if mark else None


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The ranks that the test's roles marker asks for."""
    from mpi4py import MPI

    roles = roles_of(request.node)
    assert roles is not None, "the world fixture needs @pytest.mark.roles(simulation=, inference=)"
    comm = MPI.COMM_WORLD.Dup()
    yield World(comm, roles.names())
    comm.Free()


@pytest.fixture
def mpiexec(tmp_path: Path) -> Any:
    """Run an MPI job in a folder of its own: mpiexec(["-n", "4", sys.executable, ...])."""

    def run(
        args: list[Any],
        *,
        timeout: float = 60,
        env: dict[str, str] | None = None,
        cwd: Any = None,
        wrapped: Sequence[str] = (),
    ) -> Any:
        settings = mpijob.settings() | (env or {})
        command = [*wrapped, settings["MPIEXEC"], *map(str, args)]
        seconds = mpijob.PATIENCE * timeout
        result = mpijob.run(command, timeout=seconds, env=settings, cwd=cwd or tmp_path)
        # Shown by pytest when the test fails.
        print("$", *command, f"\n[exit {result.returncode}]\n{result.stdout}", flush=True)
        print(result.stderr, file=sys.stderr, flush=True)
        return result

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ranks", type=int, help="run only the tests that need this many ranks")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "roles(simulation, inference, order='tail'): the world that a test needs; "
        "order is tail, head or interleaved, and says where the inference ranks are",
    )
    config.addinivalue_line(
        "markers", "every_mpi: `make test` runs it under each MPI, others under one of them"
    )
    config.addinivalue_line("markers", "takes_long: only `make test-all` and TESTS=--long run it")
    folder = os.environ.get("MPISERVE_TEST_DIR")
    if folder:
        config.option.basetemp = f"{folder}/tmp.{RANK}"
        config.pluginmanager.register(Report(Path(folder, f"report.{RANK}")), "mpiserve-report")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("timeout")
        usual = config.getoption("timeout") or config.getini("timeout")
        seconds = mpijob.PATIENCE * float(mark.args[0] if mark and mark.args else usual)
        item.add_marker(pytest.mark.timeout(seconds), append=False)
    ranks = config.getoption("--ranks")
    if ranks is not None:
        wrong = [item for item in items if (roles := roles_of(item)) and roles.size != ranks]
        config.hook.pytest_deselected(items=wrong)
        items[:] = [item for item in items if item not in wrong]


def pytest_runtest_setup(item: pytest.Item) -> None:
    roles = roles_of(item)
    if roles and roles.size != SIZE:
        # Not a skip: a test that nobody runs must not look green.
        pytest.fail(
            f"needs {roles.size} ranks, and the world has {SIZE}: use tests/run.py, or "
            f"mpiexec -n {roles.size} python -m pytest --ranks {roles.size} ...",
            pytrace=False,
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[EXIT_STATUS] = int(exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the world when this rank failed: the others may wait for it for ever."""
    if SIZE > 1 and config.stash.get(EXIT_STATUS, 0) not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        from mpi4py import MPI

        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.5)  # so that ranks which fail too can still write their logs
        MPI.COMM_WORLD.Abort(1)


EXIT_STATUS = pytest.StashKey[int]()


def where_and_why(report: pytest.TestReport) -> str:
    """Return a line: the place where a test failed, and the first line of its error."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return str(report.longrepr).strip().rpartition("\n")[2]
    return f"{os.path.relpath(crash.path)}:{crash.lineno}: {crash.message.partition(chr(10))[0]}"


class Report:
    """Writes one JSON line per test and phase as it goes: a killed rank leaves what it knew."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", buffering=1)

    def write(self, **entry: Any) -> None:
        self.file.write(json.dumps(entry) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            roles = roles_of(item)
            mark = item.get_closest_marker("timeout")
            self.write(
                test=item.nodeid,
                outcome="collected",
                ranks=roles.size if roles else None,
                every_mpi=item.get_closest_marker("every_mpi") is not None,
                timeout=float(mark.args[0] if mark else 0),
            )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(test=report.nodeid, outcome="failed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            seconds = round(report.duration, 2)
            why = {"why": where_and_why(report)} if report.failed else {}
            self.write(test=report.nodeid, outcome=report.outcome, seconds=seconds, **why)
