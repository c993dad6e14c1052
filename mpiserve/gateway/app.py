"""The ASGI application of the gateway: who may come in, what happens to errors, the access log."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import IO, Any

from starlette.exceptions import HTTPException

from mpiserve.errors import Code, Error
from mpiserve.gateway import infer
from mpiserve.gateway.errors import CODE, Refusal, status_of
from mpiserve.gateway.hub import Hub
from mpiserve.gateway.openai_api import ROOT, OpenAIRoutes
from mpiserve.gateway.routes import Routes
from mpiserve.gateway.statistics import Statistics
from mpiserve.wire import open_inference_server as wire
from mpiserve.wire import openai_server as openai
from mpiserve.wire.json_body import WireError

INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
OPEN = "/v2/health/live"  # needs no token
AUTHORIZATION = b"authorization"
RETRY = (b"retry-after", b"1")
CLOSE = (b"connection", b"close")
SMALL = 64 << 10  # bytes of a body that is refused

Scope = MutableMapping[str, Any]
Send = Callable[[Any], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

logger = logging.getLogger("mpiserve")


class Body:
    """What comes of a request, which notes whether all of it has come."""

    def __init__(self, receive: infer.Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __call__(self) -> Any:
        """Return the next message."""
        message = await self._receive()
        self.ended = not message.get("more_body", False)
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
        token: What clients must know.
        limit_s: Seconds that a request may take.
        version: Of mpiserve.
        log: Gets a line for each request, or None.
    """

    def __init__(
        self, hub: Hub, token: str, limit_s: float, version: str, log: IO[str] | None
    ) -> None:
        self._hub = hub
        self._token = b"Bearer " + token.encode()
        self._limit_s = limit_s
        self._statistics = Statistics()
        self._routes = Routes(hub, self._statistics, version).app()
        self._routes.routes += OpenAIRoutes(hub, self._statistics, limit_s).routes()
        self._log = log

    async def __call__(self, scope: Scope, receive: infer.Receive, send: Send) -> None:
        """Answer a request."""
        begin = time.perf_counter()
        status, size, body = 200, 0, Body(receive)

        async def refuse(status: int, text: str | Exception, *more: tuple[bytes, bytes]) -> None:
            await body.drain(dict(scope["headers"]).get(b"content-length", b"0"))
            told = _told(scope["path"], status, text)
            await _refuse(send, status, told, more if body.ended else (*more, CLOSE))

        async def counted(message: Any) -> None:
            nonlocal status, size
            status = message.get("status", status)
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, body, counted if self._log else send)
        except Refusal as refusal:
            status = refusal.status
            await refuse(refusal.status, refusal.text)
        except HTTPException as error:
            status = error.status_code
            await refuse(status, error.detail)
        except WireError as error:
            status = 400
            await refuse(status, error, _code(Code.EARG))
        except Error as error:
            status = status_of(error)
            await refuse(status, error, _code(error.code), *[RETRY] * (status == 503))
        except Exception:
            status = 500
            logger.exception("the gateway failed on a request for %s", _shown(scope))
            await refuse(status, "an internal error, which the job's log shows")
        if self._log:
            self._note(scope, status, size, time.perf_counter() - begin)

    async def _answer(self, scope: Scope, receive: infer.Receive, send: Send) -> None:
        path, headers = scope["path"], dict(scope["headers"])
        if path != OPEN and not self._knows(headers):
            raise Refusal(401, "a token is needed: Authorization: Bearer TOKEN")
        found = INFER.fullmatch(path)
        if found is None:
            scope["app"] = self  # then a wrong path or method is an exception
            await self._routes(scope, receive, send)
            return
        if scope["method"] != "POST":
            raise Refusal(405, "inference needs POST")
        service = infer.find(self._hub, found[1], found[2])
        made, body = await infer.answer(
            self._hub, self._statistics, self._limit_s, service, headers, receive
        )
        made.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": made})
        await send({"type": "http.response.body", "body": body})

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        """Compare the token, in a time that does not depend on how much of it is right."""
        return hmac.compare_digest(headers.get(AUTHORIZATION, b""), self._token)

    def _note(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        assert self._log
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        client = scope.get("client") or ("-",)
        line = f"{now} {client[0] or '-'} {_shown(scope)} {status} {size} {seconds:.6f}"
        self._log.write(line + "\n")


def _shown(scope: Scope) -> str:
    """The method and the path, as one word each: whatever a client sends."""
    path = scope["path"][:200].encode("unicode_escape").decode().replace(" ", "%20")
    return f"{scope['method'][:16]} {path}"


def _code(code: int) -> tuple[bytes, bytes]:
    return CODE.encode(), Code(code).name.encode()


def _told(path: str, status: int, text: str | Exception) -> bytes:
    """The body of an error, as the protocol of the path has it."""
    if path.startswith(ROOT):
        return openai.error_body(status, text)
    return wire.dump({"error": str(text)})


async def _refuse(send: Send, status: int, body: bytes, more: Headers) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
