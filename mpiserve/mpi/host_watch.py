"""Detect that another host is out of reach, from the state of TCP connections in the kernel.

MPI waits for a host whose network is cut until the kernel gives up, 15 minutes by default. A
host's kernel acknowledges even while its ranks compute: silence means the host or the network.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

from mpiserve.config import environment

LIMIT = 30.0  # seconds without a sign of life, if MPISERVE_LOST does not say
PERIOD = 0.5  # seconds between two checks
ESTABLISHED, CLOSED = 1, 7  # states of tcp_info
STATE_AT, ACK_AGE_AT, INFO_BYTES = 0, 56, 104  # offsets in tcp_info, and the bytes to read

logger = logging.getLogger("mpiserve")


class Peer(NamedTuple):
    """One connection to another host.

    Attributes:
        host: Its name, or its address.
        age: Seconds since the last sign of life.
        broken: Whether the kernel has closed the connection.
    """

    host: str
    age: float
    broken: bool


def limit() -> float:
    """Return the seconds that a host may be silent, from MPISERVE_LOST; 0 means for ever."""
    return environment.seconds("MPISERVE_LOST", LIMIT)


def watch(end: Callable[[str], None], seconds: float, *, ranks_may_die: bool = False) -> None:
    """Start a thread that calls `end` once, with a text, when a host is silent for `seconds`.

    A broken connection counts as such a host, unless `ranks_may_die`: a process that dies breaks
    its connections too.
    """
    if seconds > 0 and sys.platform == "linux":
        watcher = Watcher(seconds, ranks_may_die=ranks_may_die)
        threading.Thread(target=watcher.run, args=(end,), name="mpiserve wire", daemon=True).start()


class Watcher:
    """Checks the connections of this process."""

    def __init__(self, seconds: float, *, ranks_may_die: bool = False) -> None:
        self._seconds = seconds
        self._ranks_may_die = ranks_may_die
        self._hosts: dict[str, str] = {}  # name of the other host, by the inode of the socket

    def run(self, end: Callable[[str], None]) -> None:
        """Check the connections until a host is lost."""
        pause = threading.Event()
        while not (text := self.lost()):
            pause.wait(PERIOD)
        end(text)

    def lost(self) -> str | None:
        """Return a text that names a lost host, or None."""
        for peer in self.peers():
            if peer.age > self._seconds or (peer.broken and not self._ranks_may_die):
                silent = f"no sign of life from host {peer.host} for {self._seconds:g} s"
                return f"{silent} (MPISERVE_LOST): its network is cut, or it is down"
        return None

    def peers(self) -> list[Peer]:
        """List the connections to other hosts."""
        seen = {}
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                inode = os.readlink(f"/proc/self/fd/{number}")
                if not inode.startswith("socket:"):
                    continue
                with socket.socket(fileno=os.dup(int(number))) as connection:
                    peer = self._look(connection, inode)
            except OSError:  # it was closed, or is not connected
                continue
            if peer:
                seen[inode] = peer.host
                found.append(peer)
        self._hosts = seen
        return found

    def _look(self, connection: socket.socket, inode: str) -> Peer | None:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if connection.type != socket.SOCK_STREAM:
            return None
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
        known = self._hosts.get(inode)
        if known is None and info[STATE_AT] == ESTABLISHED:
            known = self._meet(connection)
        if not known:
            return None
        age = struct.unpack_from("I", info, ACK_AGE_AT)[0] / 1000
        return Peer(known, age if info[STATE_AT] == ESTABLISHED else 0, info[STATE_AT] == CLOSED)

    def _meet(self, connection: socket.socket) -> str | None:
        """Turn on keepalive for a new connection, and return the name of the other host."""
        address, own = connection.getpeername()[0], connection.getsockname()[0]
        if address == own or address.startswith("127.") or address == "::1":
            return None
        idle = max(1, int(self._seconds / 3))
        tcp = socket.IPPROTO_TCP
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(tcp, socket.TCP_KEEPIDLE, idle)
        connection.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, idle // 2))
        connection.setsockopt(tcp, socket.TCP_KEEPCNT, 20)  # the watcher must report it first
        try:
            return socket.gethostbyaddr(address)[0]
        except OSError:
            return address
