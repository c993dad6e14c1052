"""What tests/run.py runs: jobs, under the MPI of an environment."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build/test-logs"
# One log per rank, whatever the launcher.
TO_LOG = 'exec "$@" >"$LOG.${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}" 2>&1'


@dataclass(eq=False)  # one object for each MPI
class Target:
    """One MPI: its environment folder and the settings of a job that uses it."""

    name: str
    prefix: Path
    env: dict[str, str] = field(default_factory=dict)
    fortran: bool = False  # there for the fortran suite alone
    number: int = 0  # among those of its kind

    @property
    def python(self) -> str:
        return str(self.prefix / "bin/python")

    @property
    def mpicc(self) -> str:
        found = shutil.which("mpicc", path=str(self.prefix / "bin"))
        return found or os.environ.get("MPICC") or "mpicc"


@dataclass
class Job:
    """One command, and the tests that it must report."""

    title: str
    command: list[str]
    env: dict[str, str]
    timeout: float
    ranks: int = 1
    tests: list[str] = field(default_factory=list)  # empty: one test, told by the exit status
    again: str = ""  # the command that runs one of them, which comes behind it
    every_mpi: bool = False  # also where time is saved
    for_every_mpi: list[str] = field(default_factory=list)  # the tests that are; empty: all

    @property
    def folder(self) -> Path:
        return LOGS / re.sub(r"[^\w.=-]+", "_", self.title)

    def narrowed(self) -> Job:
        """Return the job with those of its tests alone that are for every MPI."""
        tests = self.for_every_mpi
        if not tests or len(tests) == len(self.tests):
            return self
        module = tests[0].partition("::")[0]
        at = self.command.index(module)
        command = [*self.command[:at], *tests, *self.command[at + 1 :]]
        return replace(self, tests=tests, command=command)


def in_turn(jobs: list[list[Job]], number: int, mpis: int) -> Iterator[Job]:
    """Yield what one of the MPIs runs where time is saved, out of the same jobs per transport.

    Each job is run with one transport, by one MPI; the tests of it that are for every MPI by every
    one, then with another transport.
    """
    for i, alike in enumerate(zip(*jobs, strict=True)):
        job = alike[(i // mpis + number) % len(alike)]
        if i % mpis == number:
            yield job
        elif job.every_mpi:
            yield job.narrowed()


def joined(jobs: Iterable[Job], most: int) -> Iterator[Job]:
    """Join jobs that differ in their modules alone, so many at a time: ranks start for seconds."""
    alike: dict[tuple[int, str], list[Job]] = defaultdict(list)
    for job in jobs:
        alike[job.ranks, job.env["MPISERVE_TRANSPORT"]].append(job)
    for group in alike.values():
        for i in range(0, len(group), most):
            yield _one_of(group[i : i + most])


def _one_of(jobs: list[Job]) -> Job:
    first, *others = jobs
    if not others:
        return first
    items = [item for job in jobs for item in job.command if item.startswith("tests/")]
    begin = first.command.index(items[0])
    end = first.command.index("-x")
    return replace(
        first,
        title=first.title.replace(" n=", f" +{len(others)} n="),
        command=[*first.command[:begin], *items, *first.command[end:]],
        timeout=sum(job.timeout for job in jobs),
        tests=[test for job in jobs for test in job.tests],
    )


def reports(folder: Path, rank: int) -> list[dict]:
    """Return what one rank reported; the last line of a killed one may be torn."""
    path = folder / f"report.{rank}"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
