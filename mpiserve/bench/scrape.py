"""Measure what a scrape costs a simulation that sends 1,000 requests a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiserve.bench.coupled import SERVICE, couple, doubles
from mpiserve.bench.plan import Plan
from mpiserve.bench.report import Progress, Row
from mpiserve.session import Session

RATE = 1000  # requests a second
EVERY = 1.0  # seconds between two scrapes
TURNS, SECONDS = 10, 5.0  # of each kind
QUICK_TURNS, QUICK_SECONDS = 1, 1.5
VARIABLE = "MPISERVE_METRICS"


def measure(comm: MPI.Comm, plan: Plan, progress: Progress) -> list[Row]:
    """Measure with and without scrapes, in turns. Collective over 2 ranks."""
    progress.begin("scrape", 1)
    progress.step(f"{RATE} requests/s, with and without a scrape each {EVERY:g} s")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "on"
    try:
        samples = couple(comm, "shared", doubles("echo", 64), partial(ask, plan))
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
    return [] if samples is None else [row(samples)]


@contextmanager
def scraping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that scrapes; it can be stopped and go on."""
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        command = [sys.executable, "-P", "-m", "mpiserve", "metrics", f"--every={EVERY}"]
        process = subprocess.Popen([*command, f"--textfile={folder}"])
        try:
            while not os.listdir(folder):  # it begins with a file
                if process.poll() is not None:
                    raise RuntimeError("the process that scrapes has ended")
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()


def ask(plan: Plan, session: Session) -> dict[bool, np.ndarray]:
    """Return the nanoseconds of requests without and with scrapes."""
    turns, seconds = (QUICK_TURNS, QUICK_SECONDS) if plan.quick else (TURNS, SECONDS)
    service = session.service(SERVICE)
    samples: dict[bool, list[np.ndarray]] = {False: [], True: []}
    with scraping() as process:
        paced(service, 0.2)
        for _ in range(turns):
            for scraped in samples:
                process.send_signal(signal.SIGCONT if scraped else signal.SIGSTOP)
                samples[scraped].append(paced(service, seconds))
        process.send_signal(signal.SIGCONT)
    return {scraped: np.concatenate(pieces) for scraped, pieces in samples.items()}


def paced(service: Any, seconds: float) -> np.ndarray:
    """Send requests at their times, and time each."""
    x, y = np.ones(8), np.zeros(8)
    samples = np.zeros(int(seconds * RATE), np.int64)
    begin = time.perf_counter_ns()
    for i in range(len(samples)):
        due = begin + i * 1_000_000_000 // RATE
        while (now := time.perf_counter_ns()) < due:
            time.sleep(max(0, due - now - 100_000) * 1e-9)
        service(x, out=y)
        samples[i] = time.perf_counter_ns() - now
    return samples


def row(samples: dict[bool, np.ndarray]) -> Row:
    """Compare the medians."""
    with_, without = (float(np.median(samples[scraped])) for scraped in (True, False))
    return {
        "case": "scrape",
        "requests_per_s": RATE,
        "scrape_every_s": EVERY,
        "p50_with_us": round(with_ / 1000, 3),
        "p50_without_us": round(without / 1000, 3),
        "value": round(with_ / without, 4),
        "unit": "ratio",
    }
