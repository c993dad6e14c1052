"""Let an outside judge drive a service: MLPerf LoadGen, through a client in C++.

The small network serves single rows from one core, and LoadGen and its client have the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench import _native, judge_build
from mpiserve.bench.coupled import alone, config, forced, serve, serves, settle
from mpiserve.bench.engines import SERVED
from mpiserve.bench.judge import SAME, UNIQUE, Judge, Trial, Verdict
from mpiserve.bench.models import small
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress
from mpiserve.config import Config
from mpiserve.errors import Error
from mpiserve.serving.loading import Loader

WIDTH, MAX_ROWS = 8, 1024
LIMIT_US = 1000.0  # of the 99th percentile, in Server
STREAM_RATE, OFFLINE_RATE = 50e3, 500e3  # samples per second that LoadGen may expect at first
SLACK = 1.3  # LoadGen makes so many more samples than a first run has taken
NEAR = 1.04  # the search ends where a valid and an invalid rate are so near
LOWER = 0.95  # a rate that a short run found valid, and a long one does not
MOST_CACHED = 1.1  # how much faster the same sample may be than all different ones
TOLERANCE = 1e-5
ENGINES = ("compiled", "eager")


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Let LoadGen judge each engine. Collective over 2 ranks; rank 0 gets the rows."""
    progress.say("LoadGen: compiling its client and a network, unless the cache has them")
    library, why = alone(comm, built) or ("", "")
    if why:
        progress.say(f"loadgen is left out: {why}")
        return []
    rows = []
    for engine in ENGINES:
        refused = alone(comm, partial(not_loaded, engine))
        if refused:
            progress.say(f"without {engine}: {refused}")
            continue
        rows += judged(comm, Path(library), engine, plan, progress)
    return rows


def built() -> tuple[str, str]:
    """Return the library of the client, or why there is none."""
    try:
        why = judge_build.missing()
        return ("", why) if why else (str(judge_build.library()), "")
    except Error as error:
        return "", error.text


def served(engine: str) -> Config:
    """Make the configuration of the small network with an engine."""
    keys = SERVED[engine] | {"model": "mpiserve.bench.models:small", "threads": 1}
    return config("torch", [-1, WIDTH], "float32", max_batch_rows=MAX_ROWS, **keys)


def not_loaded(engine: str) -> str:
    """Load the network with an engine, which compiles it; say why it is not possible here."""
    try:
        Loader(None, 0, lambda _: None).load(served(engine).services[0]).close()
    except Error as error:
        return error.text
    return ""


def judged(
    comm: MPI.Comm, library: Path, engine: str, plan: Plan, progress: Progress
) -> list[dict[str, Any]]:
    """Serve the network, or let LoadGen judge it."""
    with forced("shared"):
        if serves(comm):
            serve(comm, served(engine))
            return []
        client = _native.Client(comm)
        settle(served(engine))
        try:
            judge = Judge(library, client.handles(), MAX_ROWS)
            return list(Hearing(judge, engine, plan, progress).rows())
        finally:
            client.close()


class Hearing:
    """The tests of one engine."""

    def __init__(self, judge: Judge, engine: str, plan: Plan, progress: Progress) -> None:
        self.judge, self.engine, self.progress = judge, engine, progress
        self.short, self.long = (0.3, 1.0) if plan.quick else (2.0, 10.0)
        self.searches = 3 if plan.quick else 30
        self.turns = 1 if plan.quick else 5
        count = 5_000 if plan.quick else 200_000
        self.samples = np.random.default_rng(1).standard_normal((count, WIDTH), np.float32)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Make the rows of the report."""
        self.progress.begin(f"LoadGen, {self.engine}", 6)
        for scenario, rate in (("SingleStream", STREAM_RATE), ("MultiStream", STREAM_RATE)):
            yield self.row(scenario, self.known_rate(scenario, rate))
        offline = self.known_rate("Offline", OFFLINE_RATE)
        yield self.row("Offline", offline)
        yield self.row("Server", self.highest(offline.rate))
        yield self.accuracy(offline.rate / 10)
        yield self.caching(offline.rate)

    def row(self, scenario: str, verdict: Verdict) -> dict[str, Any]:
        """Make a row of a verdict."""
        return {
            "case": "loadgen",
            "scenario": scenario,
            "engine": self.engine,
            "verdict": verdict.word,
            "p99_us": round(verdict.p99_us, 1),
            "value": round(verdict.rate),
            "unit": "samples/s",
        }

    def known_rate(self, scenario: str, guess: float) -> Verdict:
        """Test a scenario twice: LoadGen must know the rate beforehand to test for long enough."""
        self.progress.step(scenario)
        first = self.judge.verdict(Trial(scenario, guess, self.short), self.samples)
        return self.judge.verdict(Trial(scenario, SLACK * first.rate, self.long), self.samples)

    def server(self, rate: float, seconds: float) -> Verdict:
        """Test one rate of Server."""
        return self.judge.verdict(Trial("Server", rate, seconds, LIMIT_US), self.samples)

    def highest(self, most: float) -> Verdict:
        """Find the highest valid rate of Server: by short tests, and a long one that confirms."""
        self.progress.step("Server")
        rate = highest_rate(lambda rate: self.server(rate, self.short).valid, most, self.searches)
        verdict = self.server(rate, self.long)
        for _ in range(self.searches):
            if verdict.valid:
                break
            rate *= LOWER
            verdict = self.server(rate, self.long)
        return verdict

    def accuracy(self, rate: float) -> dict[str, Any]:
        """Compare the answers that LoadGen got with those of the model in this process."""
        self.progress.step("accuracy")
        few = self.samples[:5_000]
        answers = self.judge.answers(Trial("Server", rate, accuracy=True), few)
        right = sum(
            len(answer) == WIDTH and np.allclose(answers.get(i, []), answer, TOLERANCE, TOLERANCE)
            for i, answer in enumerate(model(few))
        )
        labels = {"case": "loadgen_accuracy", "engine": self.engine, "samples": len(few)}
        return {**labels, "value": right / len(few), "unit": "share of right answers"}

    def caching(self, rate: float) -> dict[str, Any]:
        """Compare the rate with one sample, again and again, and with different ones."""
        self.progress.step("caching")
        ratios = []
        for _ in range(self.turns):
            unique, same = (
                self.judge.verdict(Trial("Offline", rate, samples=way), self.samples).rate
                for way in (UNIQUE, SAME)
            )
            ratios.append(same / unique)
        ratio = float(np.median(ratios))
        labels = {"case": "loadgen_caching", "engine": self.engine, "most": MOST_CACHED}
        passed = "passed" if ratio <= MOST_CACHED else "failed"
        return {**labels, "verdict": passed, "value": round(ratio, 3), "unit": "same / unique"}


def highest_rate(valid: Callable[[float], bool], most: float, tests: int) -> float:
    """Find the highest rate that is valid, by halving; at most `tests` tests."""
    low, high, rate = 0.0, 0.0, most / 2
    for _ in range(tests):
        if valid(rate):
            low = rate
        else:
            high = rate
        if high and low and high <= NEAR * low:
            break
        rate = (low * high) ** 0.5 if low and high else (2 * rate if low else rate / 2)
    return low or rate


def model(rows: np.ndarray) -> np.ndarray:
    """Run the network in this process."""
    import torch

    with torch.inference_mode():
        result: np.ndarray = small()(torch.from_numpy(rows)).numpy()
    return result
