"""Run the experiments: a job each, and clients of RADICAL-Pilot after it, in turns."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mpiserve.bench import job
from mpiserve.bench.machine import version
from mpiserve.bench.paper import figures, pilot
from mpiserve.bench.paper.figures import BOOTSTRAP, CASE, MPISERVE, RADICAL, ZEROMQ, Row
from mpiserve.bench.paper.ranks import Spec
from mpiserve.bench.paper.services import CLIENTS, LLAMA, NOOP, PYTHON, write_llama
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.errors import Error

SERVICES = (1, 2, 4, 8, 16)
TURNS = 3
LIMIT = 300.0  # seconds for a job
PROGRAM = "mpiserve.bench.paper.ranks"

Key = tuple[str, str, Spec]  # case, system, experiment


def measure(plan: Plan, progress: Progress) -> Iterator[Row]:
    """Measure all experiments in this process's children.

    Raises:
        Error: If one has failed, when the rows of the others have been yielded.
    """
    turns = 1 if plan.quick else TURNS
    with (
        tempfile.TemporaryDirectory(prefix="mpiserve-", dir=shared()) as folder,
        ExitStack() as stack,
    ):
        work = Work(Path(folder), progress)
        specs = [*chosen(plan.quick, len(work.hosts))]
        rival = rp(progress, max(spec.services for spec in specs), work.hosts, stack)
        progress.begin("the paper's experiments", steps(specs, turns))
        for turn in range(turns):
            # A Llama takes long to load: its job has all turns.
            for spec in [spec for spec in specs if not turn or spec.model != LLAMA]:
                progress.step(f"turn {turn + 1} of {turns}: {title(spec)}")
                work.attempt(spec, rival if spec.model == NOOP else None)
        if rival:
            work.found[BOOTSTRAP, RADICAL, Spec(NOOP, len(rival.bootstrap), 0)] = [
                figures.phases(**one) for one in rival.bootstrap
            ]
        yield from work.rows()
    if work.failed:
        raise work.failed[0]


def steps(specs: Sequence[Spec], turns: int) -> int:
    """Return the number of jobs."""
    return sum(1 if spec.model == LLAMA else turns for spec in specs)


def two_hosts() -> list[str]:
    """Return the names of two hosts, or none."""
    return [name for name in os.environ.get("MPISERVE_BENCH_HOSTS", "").split(",") if name]


def shared() -> str | None:
    """Return where files are that all ranks read: hosts have a folder for temporary ones each."""
    return os.getcwd() if two_hosts() else None


def chosen(quick: bool, hosts: int) -> Iterator[Spec]:
    """Yield the experiments: strong and weak scaling of nothing, a function, and a Llama."""
    zeromq = version("pyzmq") is not None
    nothing = Spec(NOOP, 1, 1, zeromq=zeromq, hosts=max(1, hosts))
    other = replace(nothing, zeromq=False)
    if quick:
        nothing, other = replace(nothing, seconds=0.3), replace(other, seconds=0.3)
    pairs = [(1, 1), (2, 2)] if quick else [(services, CLIENTS) for services in SERVICES]
    pairs += [] if quick else [(services, services) for services in SERVICES[:-1]]
    for services, clients in pairs:
        yield replace(nothing, services=services, clients=clients)
    for clients in (1,) if quick else (1, CLIENTS):
        yield replace(other, model=PYTHON, clients=clients)
    if version("transformers"):
        yield from llamas(other, quick)


def llamas(spec: Spec, quick: bool) -> Iterator[Spec]:
    """Yield the experiments with the Llama, which has a rank or two."""
    if quick:
        yield replace(spec, model=LLAMA, seconds=0.5)
        return
    spec = replace(spec, model=LLAMA, seconds=2.0, turns=TURNS)
    for services, clients, tensor_parallel in (
        *((1, 1, 1), (1, CLIENTS, 1), (2, CLIENTS, 1)),
        *((1, 1, 2), (1, CLIENTS, 2)),
    ):
        one = replace(spec, services=services, clients=clients)
        yield replace(one, tensor_parallel=tensor_parallel)


def title(spec: Spec) -> str:
    """Name an experiment."""
    ranks = f" of {spec.tensor_parallel} ranks" if spec.tensor_parallel > 1 else ""
    return f"{spec.model}, {spec.services} services{ranks}, {spec.clients} clients"


def rp(progress: Progress, services: int, hosts: list[str], stack: ExitStack) -> pilot.Pilot | None:
    """Start RADICAL-Pilot with all services, or say why it is left out."""
    reason = "it runs on one host" if hosts else pilot.missing()
    if reason:
        progress.say(f"RADICAL-Pilot is left out: {reason}")
        return None
    progress.say(f"RADICAL-Pilot: starting its pilot and {services} services: a minute")
    made = stack.enter_context(pilot.Pilot(services, progress))
    progress.say(f"RADICAL-Pilot: {services} services are ready")
    return made


class Work:
    """The experiments of a run, and what they found.

    Attributes:
        hosts: The names of two hosts, or none.
        found: The turns of each experiment, by case and system.
        failed: The errors of those that failed.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.hosts = two_hosts()
        self.found: dict[Key, list[Row]] = defaultdict(list)
        self.failed: list[Error] = []
        self._folder, self._progress = folder, progress

    def attempt(self, spec: Spec, rival: pilot.Pilot | None) -> None:
        """Run one turn of an experiment; the others go on if it fails."""
        try:
            self.run(spec, rival)
        except Error as error:
            self._progress.say(f"{title(spec)}: {error.text}")
            self.failed.append(error)

    def run(self, spec: Spec, rival: pilot.Pilot | None) -> None:
        """Run one turn of an experiment, and the same clients with RADICAL-Pilot."""
        if spec.model == LLAMA:
            spec = replace(spec, path=self._llama())
        begun = time.time()
        found = self._job(spec)
        key = replace(spec, path="")
        self.found[BOOTSTRAP, MPISERVE, key].append(figures.bootstrap(found, begun))
        each = [figures.response(MPISERVE, one) for one in found["turns"]]
        self.found[CASE, MPISERVE, key] += each
        if ZEROMQ in found:
            self.found[CASE, ZEROMQ, key].append(figures.response(ZEROMQ, found))
        if rival:
            found = {RADICAL: rival.measure(**wanted(spec))}
            self.found[CASE, RADICAL, key].append(figures.response(RADICAL, found))

    def _llama(self) -> str:
        path = self._folder / "llama"
        if not path.exists():
            write_llama(path)
        return str(path)

    def _job(self, spec: Spec) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            file = Path(folder, "found.json")
            counts = (spec.clients, spec.ranks - spec.clients)
            places = dict(zip(self.hosts, counts, strict=True)) if self.hosts else {}
            args = [json.dumps(asdict(spec)), str(file)]
            job.run(spec.ranks, args, LIMIT, module=PROGRAM, places=places)
            found: dict[str, Any] = json.loads(file.read_text())
            return found

    def rows(self) -> list[Row]:
        """Return the rows of the report."""
        rows = []
        for (case, system, spec), turns in self.found.items():
            named = {name: getattr(spec, name) for name in figures.LABELS}
            rows += figures.rows_of(case, system, named, turns)
        return rows + figures.ratios(rows)


def wanted(spec: Spec) -> dict[str, Any]:
    """Return what RADICAL-Pilot measures of an experiment."""
    names = ("services", "clients", "warm", "seconds")
    return {name: getattr(spec, name) for name in names}
