"""The world of torch.distributed that the ranks of a replica share."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

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
