"""The network called in process, in the ways that matter: one large call, and chunks.

    python -m mpiserve.bench.baseline ROWS

A process of its own, so that what it tells malloc changes nothing for the server that it is
compared with. It answers lines of "CHUNK STEPS" on stdin with rows per second; chunk 0 is one
call for all rows, before malloc is told anything.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import TYPE_CHECKING

from mpiserve.bench.models import features, mlp

if TYPE_CHECKING:
    import torch

WARM = 30  # steps that do not count: so many until the scheduler has found a core for each
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def main() -> None:
    """Measure what is asked for, until there is nothing more."""
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
    """Return rows per second of so many steps, each of all rows in chunks."""
    for step in range(WARM + steps):
        if step == WARM:
            begin = time.perf_counter()
        [module(x[at : at + chunk]) for at in range(0, len(x), chunk)]
    return len(x) * steps / (time.perf_counter() - begin)


def keep_memory() -> None:
    """Tell glibc not to give large blocks back, which would be faulted in anew at each call."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


if __name__ == "__main__":
    main()
