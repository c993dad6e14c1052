"""Messages between the gateway's rank and its child: JSON, then the bytes of tensors."""

from __future__ import annotations

import json
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

HEAD = struct.Struct("<IQ")  # bytes of the JSON, and of the tensors
MOST_JSON = 1 << 20  # bytes
CHUNK = 1 << 18
# What a message is.
HELLO, STATES, INFER, ANSWER, READY, DRAIN, CHANGE, PING, PONG = (
    *("hello", "states", "infer", "answer", "ready", "drain", "change", "ping", "pong"),
)


class LinkError(Exception):
    """The other side has sent what is no message, or has gone."""


def pack(table: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> list[memoryview]:
    """Make the pieces of a message; arrays are C-contiguous, and stay as they are until sent."""
    text = json.dumps(table, separators=(",", ":")).encode()
    data = [array.reshape(-1).view(np.uint8).data for array in arrays if array.size]
    head = HEAD.pack(len(text), sum(len(part) for part in data))
    return [memoryview(head + text), *data]


class Link:
    """One end of a socket that does not block.

    Args:
        end: The socket.
        most: The most bytes of tensors in a message that comes.
        most_json: The most bytes of its JSON.
    """

    def __init__(self, end: socket.socket, most: int, most_json: int = MOST_JSON) -> None:
        end.setblocking(False)
        self.socket = end
        self._most, self._most_json = most, most_json
        self._out: deque[memoryview] = deque()
        self._head = bytearray()
        self._body: bytearray | None = None
        self._table: dict[str, Any] = {}
        self._got = 0

    @property
    def is_full(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._out)

    def send(self, table: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        """Send a message, now or in later calls of `flush`.

        Raises:
            LinkError: If the other side has gone.
        """
        self._out.extend(pack(table, arrays))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        try:
            while self._out:
                self._sent(self.socket.sendmsg(list(self._out)[:16]))
        except BlockingIOError:
            return
        except OSError as error:
            raise LinkError(str(error)) from None

    def _sent(self, count: int) -> None:
        while count:
            part = self._out.popleft()
            if count < len(part):
                self._out.appendleft(part[count:])
                return
            count -= len(part)

    def receive(self) -> Iterator[tuple[dict[str, Any], memoryview]]:
        """Yield the messages that are there: the JSON, and the bytes of the tensors.

        Raises:
            LinkError: If the other side has gone, or sends what is no message.
        """
        while self._read():
            body, table = self._body, self._table
            if body is not None and self._got == len(body):
                self._body, self._got = None, 0
                yield table, memoryview(body)

    def _read(self) -> bool:
        """Read a piece; False if there is none."""
        try:
            if self._body is not None and self._got < len(self._body):
                count = self.socket.recv_into(memoryview(self._body)[self._got :])
                self._got += count
            else:
                count = self._read_head()
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkError(str(error)) from None
        if not count:
            raise LinkError("the other side has gone")
        return True

    def _read_head(self) -> int:
        """Read the head and the JSON of a message; they are small, and mostly come at once."""
        wanted = HEAD.size - len(self._head)
        if wanted <= 0:
            wanted += self._sizes()[0]
        data = self.socket.recv(wanted)
        self._head += data
        if len(self._head) >= HEAD.size:
            size, bytes_of_tensors = self._sizes()
            if size > self._most_json or bytes_of_tensors > self._most:
                raise LinkError(f"a message of {size} and {bytes_of_tensors} bytes")
            if len(self._head) == HEAD.size + size:
                self._table = _table(bytes(self._head[HEAD.size :]))
                self._body, self._got = bytearray(bytes_of_tensors), 0
                self._head.clear()
        return len(data)

    def _sizes(self) -> tuple[int, int]:
        return HEAD.unpack_from(self._head)


def _table(text: bytes) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise LinkError("a message that is no object")
    return table


def split(
    data: memoryview, shapes: Sequence[Sequence[int]], dtypes: Sequence[np.dtype[Any]]
) -> list[np.ndarray]:
    """Return the arrays that lie one after the other in the bytes of a message.

    Raises:
        LinkError: If the bytes are more or fewer.
    """
    arrays, at = [], 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        part = np.frombuffer(data[at : at + size], dtype) if size else np.zeros(0, dtype)
        arrays.append(part.reshape(shape))
        at += size
    if at != len(data):
        raise LinkError(f"{len(data)} bytes of tensors, not {at}")
    return arrays
