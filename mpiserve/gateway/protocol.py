"""HTTP connections with limits: on their number, the size of a head, and times.

uvicorn 0.54 has a time-out for connections that were used, and none for one that says nothing, for
a head that comes byte by byte, or for a body that does not come.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mpiserve.gateway.traffic import CONNECTIONS, SIZE, SLOW

MOST_HEAD = 32 << 10  # bytes
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n"


class Limits:
    """What connections may take, together.

    Args:
        connections: How many there may be.
        head_s: Seconds in which the head of a request must have come.
        body_s: Seconds in which its body must have come.
        refused: Counts what was refused, by reason.
    """

    def __init__(
        self, connections: int, head_s: float, body_s: float, refused: Counter[str]
    ) -> None:
        self.connections, self.head_s, self.body_s = connections, head_s, body_s
        self.refused = refused
        self.open = 0


class Counted(asyncio.Protocol):
    """A connection that counts from when it comes until it has gone.

    Attributes:
        limits: Those of its protocol.
        transport: None until it is made: with TLS, until the handshake has ended.
    """

    limits: Limits
    transport: Any = None
    _counted = False

    def enter(self) -> bool:
        """Count it, if it is not counted yet; False if there are too many."""
        if self._counted:
            return True
        if self.limits.open >= self.limits.connections:
            self.limits.refused[CONNECTIONS] += 1
            return False
        self.limits.open += 1
        self._counted = True
        return True

    def leave(self) -> None:
        """Count it no more."""
        self.limits.open -= self._counted
        self._counted = False


def limited(limits: Limits) -> type[HttpToolsProtocol]:
    """Make the class of connections with these limits."""
    return type("Limited", (_Limited,), {"limits": limits})


class _Limited(HttpToolsProtocol, Counted):
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self.enter():
            transport.abort()
            return
        self._await_within(self.limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # The part of a body that comes with its head is counted too: it is at most one read.
            self._head_bytes += len(data)
            if self._timer is None:
                self._await_within(self.limits.head_s)
        super().data_received(data)
        if self._in_head and self._head_bytes > MOST_HEAD and not self.transport.is_closing():
            self.limits.refused[SIZE] += 1
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._await_within(self.limits.body_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_timer()
        self._in_head, self._head_bytes = True, 0

    def _await_within(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.limits.refused[SLOW] += 1
            self.transport.abort()
