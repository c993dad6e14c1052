"""Compute while the model runs: submit, compute, test now and then, fetch the result."""

import sys
import time

import numpy as np

import mpiserve

SLICES, TERMS = 20, 400_000


def work(at: int) -> float:
    """One slice of the simulation's own work: some terms of pi squared over six."""
    k = np.arange(at * TERMS + 1, (at + 1) * TERMS + 1, dtype=np.float64)
    return float((1 / (k * k)).sum())


with mpiserve.open() as session:
    comm, rank = session.comm, session.comm.rank
    square = session.service("square")
    x = rank + np.arange(3.0)

    comm.Barrier()
    begin = time.perf_counter()
    y = square(x)
    expected = sum(work(at) for at in range(SLICES))
    in_turn = time.perf_counter() - begin

    comm.Barrier()
    begin = time.perf_counter()
    pending = square.submit(x)
    total, seen = 0.0, False
    for at in range(SLICES):
        total += work(at)
        seen = seen or pending.done()  # takes less than a microsecond
    y = pending.result(timeout=60)
    overlapped = time.perf_counter() - begin

    assert total == expected
    values = "".join(f"{value:6.1f}" for value in y)
    print(f"rank {rank}:{values}, own sum {total:.6f}", flush=True)
    print(f"rank {rank}: {in_turn:.3f} s in turn, {overlapped:.3f} s overlapped", file=sys.stderr)
