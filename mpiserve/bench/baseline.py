"""The network called in process, in the ways that matter: one large call, and chunks.

    python -m mpiserve.bench.baseline ROWS BLOCKS STEPS

A process of its own, so that what it tells malloc changes nothing for the server that it is
compared with. Prints JSON: rows per second of each block, by chunk; "naive" is one call for
all rows, before malloc is told anything.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import TYPE_CHECKING

from mpiserve.bench.models import features, mlp

if TYPE_CHECKING:
    import torch

CHUNKS = (128, 192, 256, 384, 512, 768, 1024, 1536, 3072)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def main() -> None:
    """Measure and print."""
    import torch

    rows, blocks, steps = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    module, x = mlp(), torch.from_numpy(features(rows))
    with torch.inference_mode():
        found = {"naive": [block(module, x, rows, steps) for _ in range(blocks)]}
        keep_memory()
        chunks = [chunk for chunk in CHUNKS if chunk <= rows]
        for chunk in blocks * chunks:  # in turns
            found.setdefault(str(chunk), []).append(block(module, x, chunk, steps))
    print(json.dumps(found))


def block(module: torch.nn.Module, x: torch.Tensor, chunk: int, steps: int) -> float:
    """Return rows per second of so many steps, each of all rows in chunks."""
    begin = time.perf_counter()
    for _ in range(steps):
        [module(x[at : at + chunk]) for at in range(0, len(x), chunk)]
    return len(x) * steps / (time.perf_counter() - begin)


def keep_memory() -> None:
    """Tell glibc not to give large blocks back, which would be faulted in anew at each call."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


if __name__ == "__main__":
    main()
