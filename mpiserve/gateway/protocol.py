"""HTTP connections with limits: on their number, on times, and on what they make the process hold.

uvicorn 0.54 has a time-out for connections that were used, and none for one that says nothing, for
a head that comes byte by byte, for a body that does not come, or for a client that does not read
its answers. It keeps any number of fields behind a body, and of requests that wait for their turn.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from typing import Any

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mpiserve.gateway.traffic import CONNECTIONS, QUEUE, SIZE, SLOW

MOST_HEAD = 32 << 10  # bytes
MOST_AHEAD = 100  # requests of a connection that wait for the answer to an earlier one
LEAST_SHARE = 9  # a body is at least one byte in so many: the others say where its pieces begin
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


RECEIVED_AT = 120  # tcpi_bytes_acked in struct tcp_info of Linux


def _received(connection: Any) -> int:
    """Return how many bytes the other side of a TCP connection has received."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED_AT + 8)
    return int.from_bytes(told[RECEIVED_AT:], sys.byteorder)


class _Limited(HttpToolsProtocol, Counted):
    _timer: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _head_bytes = _other_bytes = 0  # of a head; beside a body
    _in_head = True
    _answered: Any = None  # the request whose turn it is

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self.enter():
            transport.abort()
            return
        self._await_within(self.limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_reader()
        self.leave()
        self.pipeline.clear()
        if self._answered is not None:
            # uvicorn tells the last request alone, and writes the answers to others, and an error.
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # The part of a body that comes with its head is counted too: it is at most one read.
            self._head_bytes += len(data)
            if self._timer is None:
                self._await_within(self.limits.head_s)
        else:
            self._other_bytes += len(data)
        super().data_received(data)
        size = self._head_bytes if self._in_head else self._other_bytes
        if size > MOST_HEAD and not self.transport.is_closing():
            self.limits.refused[SIZE] += 1
            self.transport.write(TOO_LARGE)
            self.transport.close()
        if self.transport.is_closing():
            self._await_reader()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # and not behind a body
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes, self._other_bytes = False, 0, 0
        self._await_within(self.limits.body_s)
        if len(self.pipeline) >= MOST_AHEAD:
            self.limits.refused[QUEUE] += 1
            raise HttpParserError("too many requests that wait")  # it reads no further then
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._other_bytes = max(0, self._other_bytes - LEAST_SHARE * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_timer()
        self._in_head, self._head_bytes = True, 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reader()
        if self.transport.is_closing():
            self._await_reader()

    def eof_received(self) -> None:
        super().eof_received()
        self._await_reader()

    def _await_reader(self, before: int = 0) -> None:
        """Let a client go that takes nothing of what waits for it, to which nothing is added.

        Args:
            before: What there was at the last look; 0 at the first one.
        """
        self._stop_reader()
        left = self._left()
        if left and left == before:
            self.limits.refused[SLOW] += 1
            self.transport.abort()
        elif left:
            self._reader = self.loop.call_later(self.limits.body_s, self._await_reader, left)

    def _left(self) -> int:
        """Return a number that changes when the client takes something; 0: nothing is left.

        With TLS uvloop 0.22 does not count what it has encrypted, so what the client has received
        counts then; what is left is not known, but that the connection is still there.
        """
        if self.transport.get_extra_info("ssl_object") is None:
            return int(self.transport.get_write_buffer_size())
        return 1 + _received(self.transport.get_extra_info("socket"))

    def _stop_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

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
