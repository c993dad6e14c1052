"""Frames of HTTP/2, byte by byte, for clients of a gateway that mean no good."""

from __future__ import annotations

import socket
import time


def frame(kind, flags, stream, body=b""):
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
DATA, HEADERS, CONTINUATION = 0, 1, 9


def head(rank, path, token=None):
    """Header fields without compression, as HPACK writes them."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
        "authorization": token or f"Bearer {rank.endpoint.token}",
    }
    made = b""
    for name, value in fields.items():
        value = value if isinstance(value, bytes) else value.encode()
        made += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value
    return made


def connected(rank):
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(30)
    made.connect(rank.endpoint.grpc.url.removeprefix("unix:"))
    return made


def raw(rank, *parts, pause=0.0, until=b""):
    """Send bytes, and return what comes until the other side closes or says so, and when."""
    with connected(rank) as made:
        begin, data = time.monotonic(), b""
        try:
            for part in parts:
                made.sendall(part)
                time.sleep(pause)
            while more := made.recv(1 << 16):
                data += more
                if until and until in data:
                    break
        except ConnectionError:
            pass
        return data, time.monotonic() - begin


def mutated(random, data):
    data = bytearray(data)
    for _ in range(random.randrange(4)):
        at = random.randrange(len(data))
        data[at : at + random.randrange(3)] = random.randbytes(random.randrange(4))
        data = data or bytearray(1)
    return bytes(data)
