"""Wait for requests of MPI, and agree on errors, without burning a core."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mpiserve.failure import one_line

if TYPE_CHECKING:
    from mpi4py import MPI

TEXT = 500  # bytes of the text of a failure
SPINS = 200  # polls before the first sleep
SHORTEST, LONGEST = 20e-6, 500e-6  # seconds of a sleep


class Pause:
    """Sleeps between polls, longer each time."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again with the shortest pause, because something has happened."""
        self._polls, self._sleep = 0, SHORTEST

    def __call__(self) -> None:
        """Yield the core."""
        self._polls += 1
        if self._polls < SPINS:
            time.sleep(0)
            return
        time.sleep(self._sleep)
        self._sleep = min(1.5 * self._sleep, LONGEST)


def agree(comm: MPI.Comm, error: str, seconds: float) -> str:
    """Collect the errors of all ranks. Collective; does not burn a core.

    Args:
        comm: The ranks of a replica.
        error: The error of this rank, or "".
        seconds: How long to wait for the other ranks.

    Returns:
        "", or the errors of the ranks that failed.
    """
    mine, all_texts = np.zeros(TEXT, np.uint8), np.zeros((comm.size, TEXT), np.uint8)
    data = one_line(error, TEXT).encode()
    mine[: len(data)] = np.frombuffer(data, np.uint8)
    if not complete(comm.Iallgather(mine, all_texts), seconds):
        return f"the ranks of the replica did not all come within {seconds:g} s"
    texts = [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in all_texts]
    errors = [f"tensor-parallel rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    # An error that all ranks share is reported once, without a rank.
    return texts[0] if len(set(texts)) == 1 else "; ".join(errors)


def complete(request: MPI.Request, seconds: float) -> bool:
    """Wait for a request for at most `seconds`, without burning a core."""
    end, pause = time.monotonic() + seconds, Pause()
    while not request.Test():
        if time.monotonic() > end:
            return False
        pause()
    return True
