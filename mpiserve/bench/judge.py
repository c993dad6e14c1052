"""Tests of MLPerf LoadGen against a service, and LoadGen's verdicts."""

from __future__ import annotations

import ctypes
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mpiserve.errors import Code, Error

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")  # in the order of LoadGen's enum
SAMPLES_PER_QUERY = 8  # of MultiStream
MIN_QUERIES = 700  # LoadGen wants 662, to be sure of a 99th percentile
SUMMARY, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
ANY, UNIQUE, SAME = range(3)  # samples of a test: as LoadGen likes, none twice, always the same


T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What LoadGen shall do.

    Attributes:
        scenario: One of SCENARIOS.
        rate: Samples per second: those of Server, and what LoadGen may expect of the others.
        seconds: How long it shall last at least; 0: each sample once.
        limit_us: What the 99th percentile of latency may be in Server.
        samples: ANY, UNIQUE or SAME.
        accuracy: Whether to send each sample once and to keep the answers.
    """

    scenario: str
    rate: float
    seconds: float = 0.0
    limit_us: float = 1000.0
    samples: int = ANY
    accuracy: bool = False


@dataclass(frozen=True)
class Verdict:
    """What LoadGen says of a trial.

    Attributes:
        valid: Whether it counts: it was long enough, and kept the limits of its scenario.
        rate: Samples per second.
        p99_us: The 99th percentile of the latency, of queries in MultiStream.
    """

    valid: bool
    rate: float
    p99_us: float

    @property
    def word(self) -> str:
        """LoadGen's own word."""
        return "VALID" if self.valid else "INVALID"


class _Trial(ctypes.Structure):
    """bench_test of csrc/bench/loadgen.cpp."""

    _fields_ = (
        ("scenario", ctypes.c_int32),
        ("accuracy", ctypes.c_int32),
        ("unique", ctypes.c_int32),
        ("samples_per_query", ctypes.c_int32),
        ("samples", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("max_rows", ctypes.c_int64),
        ("inputs", ctypes.c_void_p),
        ("rate", ctypes.c_double),
        ("duration_ms", ctypes.c_int64),
        ("limit_ns", ctypes.c_int64),
        ("min_queries", ctypes.c_int64),
        ("folder", ctypes.c_char_p),
    )


class Judge:
    """LoadGen and its client, on a rank with a session.

    Args:
        library: The library of the client: see judge_build.
        handles: The addresses of the session and of the service.
        max_rows: The rows of a batch.
    """

    def __init__(self, library: Path, handles: tuple[int, int], max_rows: int) -> None:
        self._run = ctypes.CDLL(str(library)).bench_loadgen
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(_Trial)]
        self._run.restype = ctypes.c_char_p
        self._handles = handles
        self._max_rows = max_rows

    def verdict(self, trial: Trial, inputs: np.ndarray) -> Verdict:
        """Run a test with these samples, float32 [n, width].

        Raises:
            Error: If a request failed, or LoadGen wrote no summary.
        """
        return self._judged(trial, inputs, lambda folder: read_verdict(folder, trial))

    def answers(self, trial: Trial, inputs: np.ndarray) -> dict[int, np.ndarray]:
        """Run a test of accuracy, and return the answers by the index of their sample."""
        return self._judged(trial, inputs, read_answers)

    def _judged(self, trial: Trial, inputs: np.ndarray, read: Callable[[Path], T]) -> T:
        with tempfile.TemporaryDirectory(prefix="mpiserve-") as name:
            told = self._told(trial, inputs, name)
            failed = self._run(*self._handles, ctypes.byref(told))
            if failed:
                raise Error(Code.EMODEL, f"a request of LoadGen failed: {failed.decode()}")
            return read(Path(name))

    def _told(self, trial: Trial, inputs: np.ndarray, folder: str) -> _Trial:
        return _Trial(
            scenario=SCENARIOS.index(trial.scenario),
            accuracy=trial.accuracy,
            unique=trial.samples,
            samples_per_query=SAMPLES_PER_QUERY,
            samples=len(inputs),
            width=inputs.shape[1],
            max_rows=self._max_rows,
            inputs=inputs.ctypes.data,
            rate=trial.rate,
            duration_ms=int(1000 * trial.seconds),
            limit_ns=int(1000 * trial.limit_us),
            min_queries=MIN_QUERIES if trial.seconds else len(inputs),
            folder=folder.encode(),
        )


def read_verdict(folder: Path, trial: Trial) -> Verdict:
    """Read LoadGen's summary of a trial.

    Raises:
        Error: If there is none.
    """
    try:
        text = (folder / SUMMARY).read_text()
    except OSError:
        text = ""
    word = re.search(r"^Result is : (\w+)$", text, re.MULTILINE)
    if not word:
        raise Error(Code.ESTATE, f"LoadGen wrote no result of {trial.scenario}")
    p99 = _number(text, r"99\.00 percentile latency \(ns\)") / 1000
    return Verdict(word[1] == "VALID", _rate(text, trial), p99)


def _rate(text: str, trial: Trial) -> float:
    if trial.scenario == "Server":
        return _number(text, "Completed samples per second")
    if trial.scenario == "Offline":
        return _number(text, "Samples per second")
    samples = SAMPLES_PER_QUERY if trial.scenario == "MultiStream" else 1
    return samples * 1e9 / _number(text, r"Mean latency \(ns\)")


def _number(text: str, label: str) -> float:
    found = re.search(rf"^{label}\s*:\s*([\d.e+]+)$", text, re.MULTILINE)
    if not found:
        raise Error(Code.ESTATE, f"LoadGen's summary has no line {label}")
    return float(found[1])


def read_answers(folder: Path) -> dict[int, np.ndarray]:
    """Read LoadGen's log of answers: float32, by the index of their sample."""
    entries = json.loads((folder / ACCURACY).read_text())
    return {
        entry["qsl_idx"]: np.frombuffer(bytes.fromhex(entry["data"]), np.float32)
        for entry in entries
    }
