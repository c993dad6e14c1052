"""Take samples, and summarize them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np


def timed(call: Callable[[], object], warm: int, rounds: int) -> np.ndarray:
    """Call a function repeatedly; return the nanoseconds of each call after the warm-up."""
    for _ in range(warm):
        call()
    clock = time.perf_counter_ns
    samples = np.zeros(rounds, np.int64)
    for i in range(rounds):
        begin = clock()
        call()
        samples[i] = clock() - begin
    return samples


def summary(samples: Sequence[np.ndarray]) -> dict[str, float]:
    """Return p50, p99 and maximum, in microseconds, of nanoseconds in several pieces."""
    micros = np.concatenate(samples) / 1000
    p50, p99 = np.percentile(micros, [50, 99])
    return {
        "p50_us": round(float(p50), 3),
        "p99_us": round(float(p99), 3),
        "max_us": round(float(micros.max()), 3),
    }
