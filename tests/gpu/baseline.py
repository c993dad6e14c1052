"""What the hardware allows: the same work in one process, with pinned copies.

Prints one line of JSON.

python baseline.py NAME
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import models
import torch
from jobs import quantiles

CHUNK, ROWS = 8192, 65536


def one_row() -> dict[str, float]:
    """Copy a row to the device, run the small network, copy the result back."""
    module = models.mlp().cuda()
    x, y = torch.ones(1, 8).pin_memory(), torch.empty(1, 8).pin_memory()
    times = []
    with torch.inference_mode():
        for _ in range(3000):
            begin = time.perf_counter()
            y.copy_(module(x.cuda(non_blocking=True)), non_blocking=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    return quantiles(times[1000:])


def rows() -> dict[str, float]:
    """Run the wide network in chunks, copies of one beside the work of another."""
    module = models.mlp(wide=True).cuda()
    x, y = torch.ones(ROWS, 64).pin_memory(), torch.empty(ROWS, 64).pin_memory()
    streams = [torch.cuda.Stream() for _ in range(3)]

    def step() -> None:
        for i, begin in enumerate(range(0, ROWS, CHUNK)):
            with torch.cuda.stream(streams[i % 3]):
                part = x[begin : begin + CHUNK].cuda(non_blocking=True)
                y[begin : begin + CHUNK].copy_(module(part), non_blocking=True)
        torch.cuda.synchronize()

    with torch.inference_mode():
        return {"rows_per_s": ROWS / best_of(step)}


def large() -> dict[str, float]:
    """Copy 16 MiB in and 16 MiB out at the same time."""
    x, y = torch.ones(4 << 20).pin_memory(), torch.empty(4 << 20).pin_memory()
    there, back = torch.empty(4 << 20, device="cuda"), torch.ones(4 << 20, device="cuda")
    streams = [torch.cuda.Stream() for _ in range(2)]

    def step() -> None:
        with torch.cuda.stream(streams[0]):
            there.copy_(x, non_blocking=True)
        with torch.cuda.stream(streams[1]):
            y.copy_(back, non_blocking=True)
        torch.cuda.synchronize()

    return {"bytes_per_s": 2 * x.nbytes / best_of(step)}


def best_of(step: Callable[[], None]) -> float:
    """Seconds: the median of 30 after 5."""
    times = []
    for _ in range(35):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return sorted(times[5:])[15]


if __name__ == "__main__":
    print("FOUND", json.dumps(globals()[sys.argv[1]]()), flush=True)
