"""Clients of a gateway that mean no good, over HTTP: what each does, and what must come of it."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from http2_frames import mutated

from mpiserve.wire import open_inference as wire

LATE = 40.0  # seconds after which a connection was kept, whatever the limits of a second say
INFER = "/v2/models/twice/infer"
PATHS = (
    *("/v2", "/v2/health/ready", "/v2/models/twice", "/v2/models/twice/stats", "/v2/models/stats"),
    *(INFER, "/v2/repository/index", "/v2/repository/models/twice/load", "/metrics", "/none"),
    *("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings"),
)
TRIES = 5
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSED = 0  # stands for the status of a connection that was closed without one
ANSWERS = {200, 400, 403, 404, 405, 413, 415, 501, 504}  # to a request that is whole
FRAMED = ANSWERS | {CLOSED, 401, 408, 431}  # to one whose head is wrong, too
ROWS = (
    8192  # of a batch of the service: so answers are larger than what a kernel holds for a client
)


class Target:
    """A gateway, and what its attackers have seen of it.

    Args:
        address: Host and port.
        token: Of a client that may not change models.
        secrets: What no answer may have.

    Attributes:
        counts: How often each kind of client got which status.
        wrong: What must not be.
    """

    def __init__(self, address: tuple[str, int], token: str, secrets: Iterable[str]) -> None:
        self.address, self.token = address, token
        self._secrets = [secret.encode() for secret in secrets]
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, LATE)

    def say(
        self, parts: Iterable[bytes], pause: float = 0.0, may_stay: bool = False
    ) -> bytes | None:
        """Send bytes until the gateway closes; return what it says, or None if it does not close.

        One that `may_stay` needs an answer only: it may have asked for more.
        """
        end = time.monotonic() + LATE
        with self.connect() as made:
            try:
                for part in parts:
                    made.sendall(part)
                    time.sleep(pause)
                    if time.monotonic() > end:
                        return None
            except TimeoutError:
                return None
            except OSError:
                pass  # it may have answered
            return heard(made, may_stay)

    def ask(self, sent: bytes) -> bytes | None:
        """Send a whole request; on a busy machine one may be too slow, and is sent again."""
        data: bytes | None = b""
        for _ in range(TRIES):
            if data != b"":
                break
            data = self.say([sent])
        return data

    def judge(
        self, kind: str, data: bytes | None, allowed: Iterable[int], sent: bytes = b""
    ) -> None:
        """Note what came of a client, and what is wrong with it, with what it has sent."""
        status = status_of(data or b"")
        with self._lock:
            self.counts[kind, status] += 1
        kind = f"{kind}, sent {sent[:1500]!r}" if sent else kind
        if data is None:
            self.wrong.append(f"{kind}: the connection was kept")
        elif status not in allowed:
            self.wrong.append(f"{kind}: status {status}: {data[:300]!r}")
        elif any(secret in data for secret in self._secrets):
            self.wrong.append(f"{kind}: the answer tells a secret: {data[:300]!r}")
        elif b"Traceback" in data or b'File "' in data:
            self.wrong.append(f"{kind}: the answer shows the program: {data[:300]!r}")


def heard(made: socket.socket, may_stay: bool) -> bytes | None:
    """Return what comes until the other side closes; None if it does not."""
    data = b""
    try:
        while more := made.recv(1 << 16):
            data += more
            if may_stay:
                made.settimeout(0.2)
    except TimeoutError:
        return data or None
    except OSError:
        pass
    return data


def status_of(data: bytes) -> int:
    """Return the status of an answer."""
    data = data.removeprefix(CONTINUE)
    return int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else CLOSED


def head(method: str, path: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Write the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: job", *(f"{k}: {v}" for k, v in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def mine(target: Target, *more: tuple[str, str]) -> list[tuple[str, str]]:
    """Return fields with the token; after its answer the gateway is to close."""
    return [("Authorization", f"Bearer {target.token}"), ("Connection", "close"), *more]


def length(size: int) -> tuple[str, str]:
    return "Content-Length", str(size)


# ---- who has no token, or sends too much


def without_token(target: Target, random: Random) -> None:
    token = target.token
    known = ["", "Bearer ", "Bearer wrong", f"Bearer {token[:-1]}", f"Bearer {token}x"]
    known += [f"Basic {token}", token, f"Bearer {random.getrandbits(256):x}", "Bearer \xff\xfe"]
    for path in PATHS:
        value = random.choice(known)
        fields = [("Authorization", value)] if value else []
        body = random.choice([b"", b"{}", b"x" * 1000])
        fields += [length(len(body)), ("Connection", "close")]
        method = "POST" if body else "GET"
        data = target.ask(head(method, path, fields) + body)
        target.judge("without the token", data, {401})


def announces_too_much(target: Target, random: Random) -> None:
    for size in (1 << 30, random.randrange(1 << 31, 1 << 59)):
        for path in (INFER, "/v2/repository/index", "/v1/completions"):
            data = target.ask(head("POST", path, mine(target, length(size))))
            target.judge("announces 1 GiB or more", data, {413})
    fields = [length(1 << 30), ("Connection", "close")]
    data = target.ask(head("POST", INFER, fields))
    target.judge("announces 1 GiB without the token", data, {401})


def sends_too_much(target: Target, random: Random) -> None:
    """In pieces, without saying how much."""
    fields = mine(target, ("Transfer-Encoding", "chunked"))
    piece = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
    data = target.say(chain([head("POST", INFER, fields)], repeat(piece)))
    target.judge("sends without end", data, {413, CLOSED})


def sends_too_much_beside(target: Target, random: Random) -> None:
    """Fields behind a body, a head without end, too many requests at once."""
    chunked = head("POST", INFER, mine(target, ("Transfer-Encoding", "chunked")))
    data = target.say(chain([chunked + b"0\r\n"], repeat(b"x: y\r\n" * 1000)))
    target.judge("fields behind a body", data, {400, 413, 431, CLOSED})
    data = target.say(chain([b"GET /v2 HTTP/1.1\r\n"], repeat(b"x: y\r\n" * 1000)))
    target.judge("a head without end", data, {400, 431, CLOSED})
    data = target.say(repeat(head("GET", "/v2", []) * 1000))
    target.judge("requests without end", data, {400, 401, CLOSED})


# ---- who is slow


def withholds_body(target: Target, random: Random) -> None:
    data = target.say([head("POST", INFER, mine(target, length(100))) + b"{"])
    target.judge("withholds the body", data, {CLOSED})


def drips_head(target: Target, random: Random) -> None:
    data = target.say(chain([b"GET /v2 HTTP/1.1\r\nx: "], repeat(b"x")), pause=0.05)
    target.judge("head in drips", data, {CLOSED})


def drips_body(target: Target, random: Random) -> None:
    fields = mine(target, ("Transfer-Encoding", "chunked"))
    data = target.say(chain([head("POST", INFER, fields)], repeat(b"1\r\n \r\n")), pause=0.05)
    target.judge("body in drips", data, {CLOSED})


def does_not_read(target: Target, random: Random) -> None:
    """A connection that nobody reads tells nothing of its end; the kernel does."""
    headers, body = wire.request([("x", np.ones((ROWS, 3), np.float32))], ["y"])
    fields = [("Authorization", f"Bearer {target.token}"), length(len(body)), *headers.items()]
    with target.connect() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(0.5)
        try:
            for _ in range(90):
                made.sendall(head("POST", INFER, fields) + body)
        except OSError:
            pass
        ends, end = (target.address[1], made.getsockname()[1]), time.monotonic() + LATE
        while (kept := is_kept(ends)) and time.monotonic() < end:
            time.sleep(0.05)
        target.judge("does not read", None if kept else b"", {CLOSED})


def is_kept(ends: tuple[int, int]) -> bool:
    """Tell whether the first port, of this machine, has a connection from the second one."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if (int(local[-4:], 16), int(remote[-4:], 16)) == ends:
            return state == "01"
    return False


def silent(target: Target, count: int) -> None:
    """So many connections that say nothing, all there before the first one is let go."""
    waiting: dict[int, socket.socket] = {}
    poll = select.poll()
    try:
        for _ in range(count):
            made = target.connect()
            made.setblocking(False)
            waiting[made.fileno()] = made
            poll.register(made, select.POLLIN)
        end = time.monotonic() + LATE
        while waiting and time.monotonic() < end:
            for number, _ in poll.poll(1000):
                poll.unregister(number)
                waiting.pop(number).close()
                target.judge("silent", b"", {CLOSED})
    finally:
        for made in waiting.values():
            target.judge("silent", None, ())
            made.close()


# ---- what is no request

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 0.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, float("nan")),
    *("", "x", "twice", "FP32", "\ud800", "\0", "x" * 5000, "../../etc/passwd", "-1", "1e999"),
    *([], [[]], [[1, 2], [3]], {}, {"a": []}, [1] * 3000, [None], {"": {"": ""}}, ["x", 1]),
)
PARAMETERS = {"binary_data_output": True, "priority": 1, "timeout": 1000, "sequence_id": 1}


def bases() -> list[tuple[str, dict[str, str], Any, bytes]]:
    """Requests that are right: path, headers, JSON, and the bytes behind it."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": x.ravel().tolist()}
    headers, body = wire.request([("x", x)], ["y"])
    size = int(headers[wire.LENGTH])
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    both = {"id": "7", "inputs": [entry], "outputs": outputs, "parameters": PARAMETERS}
    return [
        (INFER, {}, {"inputs": [entry]}, b""),
        (INFER, {}, both, b""),
        (INFER, headers, json.loads(body[:size]), body[size:]),
        ("/v2/repository/index", {}, {"ready": True}, b""),
        ("/v2/repository/models/twice/load", {}, {"parameters": {"version": "1"}}, b""),
        ("/v1/completions", {}, {"model": "twice", "prompt": ["a"], "max_tokens": 3}, b""),
        ("/v1/embeddings", {}, {"model": "twice", "input": [[1, 2], [3]]}, b""),
    ]


def changed(random: Random, thing: Any) -> Any:
    """Return JSON with something in one place of it that does not belong there."""
    places = list(thing) if isinstance(thing, dict) else range(len(thing) if islist(thing) else 0)
    if not places or random.random() < 0.15:
        return nested(random) if random.random() < 0.1 else random.choice(ODD)
    at = random.choice(list(places))
    copy = dict(thing) if isinstance(thing, dict) else list(thing)
    what = random.random()
    if what < 0.1:
        del copy[at]
    elif what < 0.2 and isinstance(copy, dict):
        copy[random.choice(["", "data", "shape", "binary_data_size", "\ud800"])] = copy.pop(at)
    elif what < 0.25 and islist(copy):
        copy *= 2
    else:
        copy[at] = changed(random, thing[at])
    return copy


def islist(thing: Any) -> bool:
    return isinstance(thing, list)


def nested(random: Random) -> Any:
    made: Any = 1
    for _ in range(random.choice([3, 500])):
        made = [made] if random.random() < 0.7 else {"a": made}
    return made


def malformed(target: Target, random: Random) -> None:
    """One request: its JSON, its bytes, the length of its JSON, or its head are wrong."""
    path, headers, table, more = random.choice(bases())
    text = json.dumps(changed(random, table) if random.random() < 0.7 else table).encode()
    if headers:
        headers = headers | {wire.LENGTH: str(len(text))}
    body, how = text + more, random.random()
    if how < 0.3:
        body = mutated(random, body)
    elif how < 0.5:
        headers = headers | {wire.LENGTH: odd_number(random, len(body))}
    fields = mine(target, length(len(body)), *headers.items())
    if how < 0.85:
        sent = head("POST", path, fields) + body
        target.judge("malformed", target.ask(sent), ANSWERS, sent)
        return
    sent = broken(random, path, fields) + body
    target.judge("malformed head", target.say([sent], may_stay=True), FRAMED, sent)


def odd_number(random: Random, size: int) -> str:
    near = random.choice([0, 1, size - 1, size, size + 1, random.randrange(size + 1)])
    return random.choice(
        [str(near), "", "-1", "+1", "1e3", "0x10", "9" * 400, "\xb2", "1, 2", "NaN"]
    )


def broken(random: Random, path: str, fields: list[tuple[str, str]]) -> bytes:
    """Write a head that is wrong in its bytes, or says of its body what is not so."""
    if random.random() < 0.5:
        method = random.choice(["GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "X"])
        text = head(method, random.choice([path, "*", "//", "/%ff", "http://", "/v2?x=%"]), fields)
        return mutated(random, text) if random.random() < 0.5 else text
    odd = [length(0), length(1), ("Content-Length", odd_number(random, 100))]
    odd += [("Transfer-Encoding", "chunked"), ("Expect", "100-continue"), ("Upgrade", "websocket")]
    odd += [("Content-Encoding", "gzip"), ("Connection", "upgrade"), ("x", "y" * 40_000)]
    return head("POST", path, [*fields, *random.choices(odd, k=random.randrange(1, 4))])


KINDS: tuple[Callable[[Target, Random], None], ...] = (
    without_token,
    announces_too_much,
    sends_too_much,
    sends_too_much_beside,
    withholds_body,
    drips_head,
    drips_body,
    does_not_read,
)


def seeded(seed: int, number: int) -> Iterator[tuple[Callable[[Target, Random], None], Random]]:
    """Yield all kinds for a round, each with its dice."""
    for kind in KINDS:
        yield kind, Random(f"{seed} {number} {kind.__name__}")
