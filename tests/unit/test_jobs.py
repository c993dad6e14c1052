"""Where time is saved, each module is run all the same, and what depends on the MPI by each."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path

import jobs
import pytest
import run
from jobs import Job, in_turn, joined

TESTS = Path(__file__).parents[1]
TRANSPORTS = ("shared", "rma")


def run_by(mpis, transports=TRANSPORTS, every_mpi=(), n=12):
    """Which (module, MPI, transport) are run."""
    alike = [
        [Job(f"{i} {name}", [], {}, 1, every_mpi=i in every_mpi) for i in range(n)]
        for name in transports
    ]
    runs = [(job.title.split(), mpi) for mpi in range(mpis) for job in in_turn(alike, mpi, mpis)]
    return [(int(module), mpi, transport) for (module, transport), mpi in runs]


def test_each_module_is_run_once_and_all_combinations_alike():
    runs = run_by(mpis=2)
    assert sorted(module for module, *_ in runs) == list(range(12))
    assert set(Counter((mpi, transport) for _, mpi, transport in runs).values()) == {3}


def test_a_module_of_every_mpi_is_run_with_each_and_with_both_transports():
    runs = run_by(mpis=2, every_mpi=range(12))
    for module in range(12):
        of_it = [run[1:] for run in runs if run[0] == module]
        assert {mpi for mpi, _ in of_it} == {0, 1}
        assert {transport for _, transport in of_it} == set(TRANSPORTS)
    assert set(Counter((mpi, transport) for _, mpi, transport in runs).values()) == {6}


@pytest.mark.parametrize("transports", [("shared",), TRANSPORTS])
def test_one_mpi_runs_all(transports):
    runs = run_by(mpis=1, transports=transports)
    assert [module for module, *_ in runs] == list(range(12))
    assert {transport for *_, transport in runs} == set(transports)


def job_of(number, ranks, transport):
    module = f"tests/mpi/test_{number}.py"
    command = ["mpiexec", "pytest", "-k", "", module, "-x", "--ranks", str(ranks)]
    title = f"mpi {transport} mpi/test_{number}.py n={ranks}"
    env = {"MPISERVE_TRANSPORT": transport}
    return Job(title, command, env, 10, ranks, [f"{module}::test_it"])


def test_modules_of_as_many_ranks_share_a_job_and_are_all_run():
    alone = [job_of(i, 2 + i % 2, TRANSPORTS[i // 6 % 2]) for i in range(20)]
    made = list(joined(alone, 3))
    assert sorted(test for job in made for test in job.tests) == sorted(
        test for job in alone for test in job.tests
    )
    for job in made:
        modules = [item for item in job.command if item.startswith("tests/")]
        assert [test.partition("::")[0] for test in job.tests] == modules
        assert 1 <= len(modules) <= 3 and job.timeout == 10 * len(modules)
        assert job.command[-3:] == ["-x", "--ranks", str(job.ranks)]
        assert all(int(re.search(r"\d+", module)[0]) % 2 + 2 == job.ranks for module in modules)
    assert len({job.title for job in made}) == len(made) == 8


@pytest.mark.parametrize(("asks", "least"), [(r"is_mpich\(\)", 6), (r"\bTRANSPORT\b [!=]=", 2)])
def test_a_module_that_asks_for_the_mpi_or_transport_is_run_by_every_mpi(asks, least):
    """And so with both transports: see above."""
    mpi_tests = [path for path in TESTS.glob("*/test_*.py") if path.parent.name != "unit"]
    asking = [path for path in mpi_tests if re.search(asks, path.read_text())]
    assert len(asking) >= least
    for path in asking:
        assert "pytest.mark.every_mpi" in path.read_text(), path.name


@pytest.mark.parametrize(("keyword", "failures"), [("", ["c: nothing was run"]), ("none", [])])
def test_a_suite_that_runs_nothing_fails(monkeypatch, keyword, failures):
    monkeypatch.setattr(run, "plan", lambda *given: [])
    summary = run.Summary(minutes=1, repeats=0)
    run.run_all(summary, ["c", "fortran"], [None], Namespace(k=keyword, fortran=[]))
    assert summary.failures == failures


def ended(monkeypatch, tmp_path, command, repeats):
    """Run a command as a job without tests; return the summary."""
    monkeypatch.setattr(jobs, "LOGS", tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    summary = run.Summary(minutes=1, repeats=repeats)
    summary.run(Job("job", ["sh", "-c", command], dict(os.environ), 30))
    return summary


FAILS_ONCE = "[ -e ../seen ] || { touch ../seen; exit 1; }"


@pytest.mark.parametrize(
    ("command", "repeats", "failed", "unstable"),
    [
        (FAILS_ONCE, 1, 0, ["job  job"]),
        (FAILS_ONCE, 0, 1, []),
        ("exit 1", 1, 1, []),
        ("true", 1, 0, []),
    ],
)
def test_a_failing_job_is_repeated_if_it_may(
    monkeypatch, tmp_path, command, repeats, failed, unstable
):
    folder = tmp_path / "jobs"
    folder.mkdir()
    summary = ended(monkeypatch, folder, command, repeats)
    assert (summary.counts["failed"], summary.unstable) == (failed, unstable)
    assert sum(summary.counts.values()) == 1
