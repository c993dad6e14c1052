"""The ranks of a replica: a torch world of their own, and agreeing without burning cores."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.failure import one_line

if TYPE_CHECKING:
    from mpi4py import MPI

TEXT = 500  # bytes of the text of a failure
SPINS = 200  # looks before the first sleep
SHORTEST, LONGEST = 20e-6, 500e-6  # seconds of a sleep


class Pause:
    """Sleeps longer and longer between looks."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Look often again: something has happened."""
        self._looks, self._sleep = 0, SHORTEST

    def __call__(self) -> None:
        """Let others have the core."""
        self._looks += 1
        if self._looks < SPINS:
            time.sleep(0)
            return
        time.sleep(self._sleep)
        self._sleep = min(1.5 * self._sleep, LONGEST)


def agree(comm: MPI.Comm, error: str, seconds: float) -> str:
    """Tell whether anything went wrong on any rank. Collective; does not burn a core.

    Returns:
        "", or what the ranks say that have failed.
    """
    mine, all_texts = np.zeros(TEXT, np.uint8), np.zeros((comm.size, TEXT), np.uint8)
    data = one_line(error, TEXT).encode()
    mine[: len(data)] = np.frombuffer(data, np.uint8)
    if not complete(comm.Iallgather(mine, all_texts), seconds):
        return f"the ranks of the replica did not all come within {seconds:g} s"
    texts = [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in all_texts]
    said = [f"tensor-parallel rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    # What all say alike is said once, and without a rank.
    return texts[0] if len(set(texts)) == 1 else "; ".join(said)


def complete(request: MPI.Request, seconds: float) -> bool:
    """Wait for a request, at most so long, without burning a core."""
    end, pause = time.monotonic() + seconds, Pause()
    while not request.Test():
        if time.monotonic() > end:
            return False
        pause()
    return True


_worlds = 0  # models of this rank that use the torch world


def open_torch_world(comm: MPI.Comm, device: str, seconds: float) -> None:
    """Make the ranks of a replica the world of torch.distributed. Collective over them.

    There is one, which the versions of a model share; it goes when the last of them has closed it.

    DeepSpeed's own discovery asks MPI_COMM_WORLD with collectives, so that inference ranks
    which call it alone hang (0.19.8); it takes a world that is there already.

    Args:
        comm: The ranks.
        device: "cpu" or "cuda".
        seconds: After which a collective of a rank that the others do not join fails.
    """
    import torch.distributed as dist

    global _worlds
    _worlds += 1
    if dist.is_initialized():
        return
    host = _host(comm)
    limit = timedelta(seconds=seconds)
    store: Any = None
    if comm.rank == 0:
        store = dist.TCPStore(host, 0, comm.size, True, limit, wait_for_workers=False)
    host, port = comm.bcast((host, store.port) if store else None)
    if store is None:
        store = dist.TCPStore(host, port, comm.size, False, limit)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=comm.rank, world_size=comm.size, timeout=limit
    )


def close_torch_world() -> None:
    """Let the world go, if nobody else uses it."""
    import torch.distributed as dist

    global _worlds
    _worlds -= 1
    if not _worlds and dist.is_initialized():
        dist.destroy_process_group()


def _host(comm: MPI.Comm) -> str:
    """Choose where the head listens: on one node no name has to be known to anybody."""
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    alone = node.size == comm.size
    node.Free()
    if not alone:
        return socket.gethostname()
    # gloo looks the host's own name up, which containers may not know.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return "127.0.0.1"
