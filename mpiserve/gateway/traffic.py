"""What the gateway has seen of its clients: counters, and the access log. No bodies, no tokens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from mpiserve.config.gateway_files import NOBODY

HTTP, GRPC = "http", "grpc"
NO_ROUTE = "none"  # of a request for a path that there is not, or without the token
LONGEST_PATH = 200  # characters of a path in the log
# Why requests and connections are refused.
TOKEN, RIGHTS, RATE, SIZE, QUEUE, CONNECTIONS, SLOW, HEAD = (
    *("token", "rights", "rate", "size", "queue", "connections", "slow", "head"),
)
REASONS = (TOKEN, RIGHTS, RATE, SIZE, QUEUE, CONNECTIONS, SLOW, HEAD)
OF_STATUS = {401: TOKEN, 403: RIGHTS, 408: SLOW, 413: SIZE, 429: RATE, 431: SIZE}


@dataclass
class Exchange:
    """One request and its answer.

    Attributes:
        protocol: HTTP or GRPC.
        method: Of HTTP.
        path: What the client asks for, without a query.
        client: Its address; "" for one at a unix socket.
        route: The path of the handler, with the names of its parameters.
        code: The status.
        token: The name of the token that the client has.
        received: Bytes of the bodies of the request.
        sent: Bytes of the bodies of the answer.
    """

    protocol: str
    method: str
    path: str
    client: str
    route: str = NO_ROUTE
    code: str = ""
    token: str = NOBODY
    received: int = 0
    sent: int = 0

    def line(self, seconds: float) -> str:
        """Write a line of the log; what a client sends is one word, whatever it is."""
        path = self.path[:LONGEST_PATH].encode("unicode_escape").decode().replace(" ", "%20")
        method = self.method[:16]
        what = f"{self.client or NOBODY} {method} {path} {self.code or NOBODY}"
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return f"{now} {what} {self.sent} {seconds * 1e3:.3f} {self.token}\n"


class Traffic:
    """Counts the requests of both protocols.

    Args:
        log: Gets a line for each request, or None.

    Attributes:
        requests: By protocol, method, route and code.
        seconds: That they took, by protocol.
        received: Bytes of their bodies, by protocol.
        sent: Bytes of the bodies of answers, by protocol.
        under_way: Requests without an answer yet, by protocol.
        refused: Requests and connections, by reason.
        tokens: Requests, by the name of the client's token.
    """

    def __init__(self, log: IO[str] | None = None) -> None:
        self._log = log
        self.requests: Counter[tuple[str, str, str, str]] = Counter()
        self.seconds: dict[str, float] = {HTTP: 0.0}
        self.received, self.sent, self.under_way = (Counter({HTTP: 0}) for _ in range(3))
        self.refused = Counter(dict.fromkeys(REASONS, 0))
        self.tokens: Counter[str] = Counter()

    @contextmanager
    def exchange(self, protocol: str, method: str, path: str, client: str) -> Iterator[Exchange]:
        """Count a request, at the end of the block."""
        one, begin = Exchange(protocol, method, path, client), time.perf_counter()
        self.under_way[protocol] += 1
        try:
            yield one
        finally:
            self.under_way[protocol] -= 1
            self._count(one, time.perf_counter() - begin)

    def refuse(self, status: int, code: str) -> None:
        """Count a refusal, if it is one of REASONS."""
        reason = QUEUE if code == "EFULL" else OF_STATUS.get(status)
        if reason:
            self.refused[reason] += 1

    def _count(self, one: Exchange, seconds: float) -> None:
        self.requests[one.protocol, one.method, one.route, one.code] += 1
        self.tokens[one.token] += 1
        self.seconds[one.protocol] = self.seconds.get(one.protocol, 0.0) + seconds
        self.received[one.protocol] += one.received
        self.sent[one.protocol] += one.sent
        if self._log:
            self._log.write(one.line(seconds))
