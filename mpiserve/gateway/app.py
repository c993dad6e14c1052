"""The ASGI application of the gateway: who may come in, and what happens to errors."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Router

from mpiserve.errors import Error
from mpiserve.gateway import infer
from mpiserve.gateway.errors import CODE, RETRY, Refusal, refusal_of
from mpiserve.gateway.hub import Hub
from mpiserve.gateway.openai_api import ROOT
from mpiserve.gateway.page import FILES
from mpiserve.gateway.routes import HOLDER
from mpiserve.gateway.statistics import Statistics
from mpiserve.gateway.tokens import Tokens
from mpiserve.gateway.traffic import HTTP, NO_ROUTE, Exchange, Traffic
from mpiserve.wire import open_inference_server as wire
from mpiserve.wire import openai_server as openai
from mpiserve.wire.json_body import WireError

INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
INFER_ROUTE = "/v2/models/{name}/infer"
OPEN = ("/v2/health/live", *FILES)  # these need no token, and say nothing of the job
AUTHORIZATION = b"authorization"
CLOSE = (b"connection", b"close")
SMALL = 64 << 10  # bytes of a body that is refused

Scope = MutableMapping[str, Any]
Send = Callable[[Any], Awaitable[None]]


class Body:
    """What comes of a request, which notes how much of it has come, and whether that is all."""

    def __init__(self, receive: infer.Receive, one: Exchange) -> None:
        self._receive, self._one = receive, one
        self.ended = False

    async def __call__(self) -> Any:
        """Return the next message."""
        message = await self._receive()
        self.ended = not message.get("more_body", False)
        self._one.received += len(message.get("body", b""))
        return message

    async def drain(self, announced: bytes) -> None:
        """Let the rest come, if it is small: who still sends does not read an answer."""
        size = int(announced) if len(announced) < 9 else SMALL
        if size >= SMALL:
            return
        size = 0
        while not self.ended and size < SMALL:
            size += len((await self()).get("body", b""))


class App:
    """The application.

    Args:
        hub: The link to the rank.
        tokens: Those of clients.
        limit_s: Seconds that a request may take.
        statistics: Of what is answered.
        traffic: Counts the requests.
        routes: All but that of inference.
    """

    def __init__(
        self,
        hub: Hub,
        tokens: Tokens,
        limit_s: float,
        statistics: Statistics,
        traffic: Traffic,
        routes: Router,
    ) -> None:
        self._hub = hub
        self._tokens = tokens
        self._limit_s = limit_s
        self._statistics = statistics
        self._traffic = traffic
        self._routes = routes

    async def __call__(self, scope: Scope, receive: infer.Receive, send: Send) -> None:
        """Answer a request."""
        client = (scope.get("client") or ("",))[0] or ""
        with self._traffic.exchange(HTTP, scope["method"], scope["path"], client) as one:
            body = Body(receive, one)

            async def counted(message: Any) -> None:
                one.code = str(message.get("status", one.code))
                one.sent += len(message.get("body", b""))
                await send(message)

            try:
                await self._answer(scope, body, counted, one)
            except HTTPException as error:
                await self._refuse(scope, body, counted, Refusal(error.status_code, error.detail))
            except Exception as error:
                refusal = refusal_of(error, f"{one.method} {one.path[:80]!r}")
                await self._refuse(scope, body, counted, refusal, error)

    async def _refuse(
        self,
        scope: Scope,
        body: Body,
        send: Send,
        refusal: Refusal,
        error: Exception | None = None,
    ) -> None:
        self._traffic.refuse(refusal.status, refusal.code)
        await body.drain(dict(scope["headers"]).get(b"content-length", b"0"))
        more = [(CODE.encode(), refusal.code.encode())] if refusal.code else []
        more += [(RETRY.encode(), b"%d" % refusal.retry_s)] * bool(refusal.retry_s)
        more += [CLOSE] * (not body.ended)
        text = _told(scope["path"], refusal, error)
        await _send(send, refusal.status, [(b"content-type", b"application/json"), *more], text)

    async def _answer(
        self, scope: Scope, receive: infer.Receive, send: Send, one: Exchange
    ) -> None:
        path, headers = scope["path"], dict(scope["headers"])
        who = self._tokens.find(headers.get(AUTHORIZATION, b""))
        one.token = who.name if who else one.token
        if who is None and path not in OPEN:
            raise Refusal(401, "a token is needed: Authorization: Bearer TOKEN")
        if who is not None and path not in OPEN:
            who.take()
        found = INFER.fullmatch(path)
        if found is None or who is None:
            scope["app"] = self  # then a wrong path or method is an exception
            scope[HOLDER] = who
            try:
                await self._routes(scope, receive, send)
            finally:
                one.route = getattr(scope.get("route"), "path", NO_ROUTE)
            return
        one.route = INFER_ROUTE
        if scope["method"] != "POST":
            raise Refusal(405, "inference needs POST")
        service = infer.find(self._hub, who, found[1], found[2])
        made, body = await infer.answer(
            self._hub, self._statistics, self._limit_s, service, headers, receive
        )
        await _send(send, 200, made, body)


def _told(path: str, refusal: Refusal, error: Exception | None) -> bytes:
    """The body of an error, as the protocol of the path has it."""
    if not path.startswith(ROOT):
        return wire.dump({"error": refusal.text})
    known = isinstance(error, Error | WireError)
    return openai.error_body(refusal.status, error if known else refusal.text)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
