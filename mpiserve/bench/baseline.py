"""Measure the network in process: one large call, and chunks.

    python -m mpiserve.bench.baseline ROWS

It runs as a process of its own, so that its settings of malloc do not affect the server that it
is compared with. For each line "CHUNK STEPS" on stdin it prints rows per second; chunk 0 is one
call for all rows, before malloc is changed.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import TYPE_CHECKING

from mpiserve.bench.models import features, mlp

if TYPE_CHECKING:
    import torch

WARM = 30  # steps before the measurement, until each process has a core
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def main() -> None:
    """Answer lines of stdin until it ends."""
    import torch

    rows = int(sys.argv[1])
    torch.set_num_threads(1)
    module, x = mlp(), torch.from_numpy(features(rows))
    with torch.inference_mode():
        for line in sys.stdin:
            chunk, steps = map(int, line.split())
            if chunk:
                keep_memory()
            print(speed(module, x, chunk or rows, steps), flush=True)


def speed(module: torch.nn.Module, x: torch.Tensor, chunk: int, steps: int) -> float:
    """Return rows per second of `steps` steps, each of all rows in chunks."""
    for step in range(WARM + steps):
        if step == WARM:
            begin = time.perf_counter()
        [module(x[at : at + chunk]) for at in range(0, len(x), chunk)]
    return len(x) * steps / (time.perf_counter() - begin)


def keep_memory() -> None:
    """Make glibc keep large blocks, which would otherwise cause page faults in each call."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest accepted value
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


if __name__ == "__main__":
    main()
