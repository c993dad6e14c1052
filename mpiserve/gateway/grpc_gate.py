"""The gate before gRPC's own server: it passes bytes on, and lets go who sends no request in time.

grpcio 1.85 has no time-out for a head that comes byte by byte. Its server ends for good when a path
is no UTF-8. And it cannot take a socket that listens already, which the rank keeps while a child is
started again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from hpack import Decoder, HPACKError

from mpiserve.gateway import accept
from mpiserve.gateway.protocol import Counted, Limits
from mpiserve.gateway.traffic import HEAD, SLOW

PREFACE = 24  # bytes with which HTTP/2 begins
FRAME = 9  # bytes before each frame: its length (3), kind, flags, stream (4)
HEADERS, CONTINUATION = 1, 9
END_HEADERS, PADDED, PRIORITY = 4, 8, 32
MOST_HEAD = 32 << 10  # bytes


class BadHead(Exception):
    """A head that gRPC's server must not see."""


class Frames:
    """Follows the frames of a client, and reads the heads of its requests.

    Attributes:
        in_head: Whether the head of a request is under way, or none has come yet.
        heads: How many have come.
    """

    def __init__(self) -> None:
        self._left = PREFACE
        self._begun = b""
        self._kind = self._flags = self._stream = self._highest = 0
        self._decoder = Decoder(MOST_HEAD)
        self._frame = bytearray()
        self.in_head = True
        self.heads = 0

    def follow(self, data: bytes) -> None:
        """Note what has come.

        Raises:
            BadHead: If the server must not have it.
        """
        at = 0
        while at < len(data):
            if not self._left:
                at += self._begin(data[at : at + FRAME])
            if self._left:
                step = min(self._left, len(data) - at)
                if self._kind == HEADERS:
                    self._keep(data[at : at + step])
                self._left -= step
                at += step
                if not self._left:
                    self._end()

    def _begin(self, data: bytes) -> int:
        """Read what comes before a frame, as far as it is there; return the bytes used."""
        used = FRAME - len(self._begun)
        self._begun += data[:used]
        if len(self._begun) == FRAME:
            self._left = int.from_bytes(self._begun[:3], "big")
            self._kind, self._flags = self._begun[3], self._begun[4]
            self._check()
            if self._kind == HEADERS:
                self._stream = int.from_bytes(self._begun[5:], "big")
            self._begun = b""
            self.in_head = self.in_head or self._kind == HEADERS
            if not self._left:
                self._end()
        return min(used, len(data))

    def _check(self) -> None:
        """A head is one frame: gRPC's clients cut those of 16 KiB, which are too large anyway.

        grpcio 1.85 takes one whose rest never comes for whole, when another frame follows.
        """
        if self._kind == CONTINUATION or (self._kind == HEADERS and not self._flags & END_HEADERS):
            raise BadHead("in parts")

    def _keep(self, part: bytes) -> None:
        self._frame += part
        if len(self._frame) > MOST_HEAD:
            raise BadHead("too large")

    def _end(self) -> None:
        if self._kind == HEADERS:
            self._read_head(self._fragment())
            self._frame.clear()
            self.in_head = False
            self.heads += 1

    def _fragment(self) -> bytes:
        """What is in a frame HEADERS, without padding and priority."""
        begin = 1 if self._flags & PADDED else 0
        end = len(self._frame) - (self._frame[0] if begin and self._frame else 0)
        begin += 5 if self._flags & PRIORITY else 0
        return bytes(self._frame[begin:end])

    def _read_head(self, block: bytes) -> None:
        try:
            # Trailers, too: each head may change the table for the next one.
            fields = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise BadHead(str(error)) from None
        is_new, self._highest = self._stream > self._highest, max(self._stream, self._highest)
        if is_new and b":path" not in (name for name, _ in fields):
            raise BadHead("a request without a path")
        # grpcio logs others, be it half of a token.
        if not fields or not all(part.isascii() for field in fields for part in field):
            raise BadHead("no text")


class _End(asyncio.Protocol):
    """One end of a connection; what comes goes to the other one."""

    transport: Any = None

    def __init__(self, other: _End | None = None) -> None:
        self.other = other

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other and not self.other.transport.is_closing():
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and not self.other.transport.is_closing():
            self.other.transport.resume_reading()


class _Client(_End, Counted):
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, limits: Limits, inside: str) -> None:
        super().__init__()
        self.limits, self._inside = limits, inside
        self._frames = Frames()
        self._early: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self.enter():
            transport.abort()
            return
        self._await_head()
        transport.pause_reading()
        self._task = asyncio.ensure_future(self._pass_on())

    async def _pass_on(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            # It knows its other end at once: the server speaks first.
            made = await loop.create_unix_connection(lambda: _End(self), self._inside)
        except OSError:  # the server ends
            self.transport.abort()
            return
        self.other = made[1]
        self.other.transport.writelines(self._early)
        self._early.clear()
        if self.transport.is_closing():
            self.other.transport.close()
        else:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        before = self._frames.heads
        try:
            self._frames.follow(data)
        except BadHead:
            self.limits.refused[HEAD] += 1
            self.transport.abort()
            return
        if not self._frames.in_head:
            self._stop()
        elif self._timer is None or self._frames.heads != before:
            self._await_head()
        if self.other:
            super().data_received(data)
        else:  # one read: uvloop 0.23 makes it though reading is paused
            self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self.leave()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._stop()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.limits.head_s, self._give_up)

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.limits.refused[SLOW] += 1
            self.transport.abort()


async def opened(
    listener: socket.socket, inside: str, limits: Limits, tls: ssl.SSLContext | None
) -> Any:
    """Open the gate.

    Args:
        listener: Where clients come.
        inside: The path of the socket at which the server listens, in a private folder.
        limits: Of the connections.
        tls: The certificate; None for none.
    """
    if tls:
        tls.set_alpn_protocols(["h2"])
    return await accept.opened(listener, lambda: _Client(limits, inside), tls)
