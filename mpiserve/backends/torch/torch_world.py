"""The world of torch.distributed that the ranks of a replica share."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mpiserve.backends.torch.peers import LOOPBACK, Peers, host_of

if TYPE_CHECKING:
    from mpi4py import MPI

_worlds = 0  # models of this rank that use the torch world


def open_torch_world(comm: MPI.Comm | Peers, device: str, seconds: float) -> None:
    """Make the ranks of a replica the world of torch.distributed. Collective over the ranks.

    A process has one world, which the versions of a model share; the last close destroys it.

    DeepSpeed 0.19.8 finds ranks by collectives over MPI_COMM_WORLD, which hang because only
    inference ranks call them. It uses a world that exists already.

    Args:
        comm: The ranks, or their child processes.
        device: "cpu" or "cuda".
        seconds: The time-out of collectives.
    """
    import torch.distributed as dist

    global _worlds
    _worlds += 1
    if dist.is_initialized():
        return
    limit = timedelta(seconds=seconds)
    store = dist.PrefixStore("world", _store(comm, limit))
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=comm.rank, world_size=comm.size, timeout=limit
    )


def close_torch_world() -> None:
    """Destroy the world, if no other model uses it."""
    import torch.distributed as dist

    global _worlds
    _worlds -= 1
    if not _worlds and dist.is_initialized():
        dist.destroy_process_group()


def _store(comm: MPI.Comm | Peers, limit: timedelta) -> Any:
    """Return a store that all ranks share."""
    import torch.distributed as dist

    if isinstance(comm, Peers):
        return comm.store
    host, store = host_of(comm), None
    if host == LOOPBACK:  # gloo looks up the host's own name, which may be unknown in containers
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if comm.rank == 0:
        store = dist.TCPStore(host, 0, comm.size, True, limit, wait_for_workers=False)
    port = comm.bcast(store.port if store else None)
    return store or dist.TCPStore(host, port, comm.size, False, limit)
