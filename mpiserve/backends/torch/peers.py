"""The ranks of a replica as their child processes, which have no MPI, see each other."""

from __future__ import annotations

import os
import pickle
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

LOOPBACK = "127.0.0.1"


class Meeting(NamedTuple):
    """Where the child processes of a replica meet.

    Attributes:
        rank: The rank of this one.
        size: The ranks.
        host: The host on which the child of the head listens.
        port: Its port.
        seconds: The time-out of collectives.
    """

    rank: int
    size: int
    host: str
    port: int
    seconds: float


class Work:
    """A collective that has begun, as a request of MPI."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def Test(self) -> bool:
        """Return whether it has ended.

        Raises:
            RuntimeError: If another rank is gone.
        """
        if not self._work.is_completed():
            return False
        self._work.wait()  # raises what went wrong
        return True


class Peers:
    """Those methods of a communicator of MPI which loading a model needs. Collective.

    Args:
        meeting: Where they meet.
        listener: The descriptor of the socket at which the first rank listens, and takes over.
    """

    def __init__(self, meeting: Meeting, listener: int | None) -> None:
        import torch.distributed as dist

        if meeting.host == LOOPBACK:  # gloo looks up the host's own name, which may be unknown
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self.rank, self.size = meeting.rank, meeting.size
        limit = timedelta(seconds=meeting.seconds)
        first = self.rank == 0
        self.store: Any = dist.TCPStore(
            meeting.host,
            meeting.port,
            self.size,
            first,
            limit,
            wait_for_workers=False,
            master_listen_fd=listener if first else None,
        )
        mine = dist.PrefixStore("peers", self.store)
        self._group: Any = dist.ProcessGroupGloo(mine, self.rank, self.size, limit)
        self._sent = 0

    def bcast(self, thing: Any, root: int = 0) -> Any:
        """Broadcast an object."""
        self._sent += 1
        key = f"object {self._sent}"
        if self.rank == root:
            self.store.set(key, pickle.dumps(thing))
            return thing
        return pickle.loads(self.store.get(key))

    def Ibcast(self, array: np.ndarray, root: int = 0) -> Work:
        """Begin to broadcast the bytes of an array."""
        import torch

        tensor = torch.from_numpy(array)
        return Work(self._group.broadcast(tensor, root))

    def Iallgather(self, mine: np.ndarray, every: np.ndarray) -> Work:
        """Begin to collect an array of each rank."""
        import torch

        rows = list(torch.from_numpy(every))
        return Work(self._group.allgather([rows], [torch.from_numpy(mine)]))


def host_of(comm: MPI.Comm) -> str:
    """Choose the address at which the head listens: loopback if all ranks are on one node.

    Collective over the ranks, which hold MPI.
    """
    from mpi4py import MPI

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    alone = node.size == comm.size
    node.Free()
    return LOOPBACK if alone else comm.bcast(socket.gethostname())


def listen(host: str) -> socket.socket:
    """Listen at a free port, for the first rank."""
    if host == LOOPBACK:
        return socket.create_server((host, 0))
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
    )
