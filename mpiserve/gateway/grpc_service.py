"""The methods of the Open Inference Protocol by gRPC: what they answer, and when they refuse.

A call of one message is handled like a stream of one: the library would read a message of any size,
for any time, before it asks who sends it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc

from mpiserve.gateway import infer
from mpiserve.gateway.errors import CODE, RETRY, Refusal, refusal_of
from mpiserve.gateway.hub import Hub
from mpiserve.gateway.models import Models
from mpiserve.gateway.statistics import Statistics
from mpiserve.gateway.tokens import Holder, Tokens
from mpiserve.gateway.traffic import GRPC, Exchange, Traffic
from mpiserve.wire import open_inference_grpc as wire
from mpiserve.wire.open_inference_messages import SERVICE, message

OPEN = "ServerLive"  # needs no token
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Method(NamedTuple):
    """A method of the protocol: the messages that come and go, and what makes one of the other."""

    asked: Any
    answered: Any
    handler: Callable[..., Awaitable[dict[str, Any]]]


class Service(grpc.GenericRpcHandler):
    """Answers calls.

    Args:
        hub: The link to the rank.
        models: The models.
        statistics: Of what is answered.
        traffic: Counts the calls.
        tokens: Those of clients.
        limit_s: Seconds that a request may take.
        body_s: Seconds in which its message must have come.
        most_streams: How many streams a token may have open.
    """

    def __init__(
        self,
        hub: Hub,
        models: Models,
        statistics: Statistics,
        traffic: Traffic,
        tokens: Tokens,
        limit_s: float,
        body_s: float,
        most_streams: int,
    ) -> None:
        self._hub = hub
        self._models = models
        self._statistics = statistics
        self._traffic = traffic
        self._tokens = tokens
        self._limit_s, self._body_s = limit_s, body_s
        self._most_streams = most_streams
        self._streams: Counter[str] = Counter()  # those open, by the name of the token
        self._methods = {
            name: Method(message(asked), message(answered), handler)
            for name, asked, answered, handler in (
                ("ServerLive", "Empty", "Live", self._live),
                ("ServerReady", "Empty", "Ready", self._ready),
                ("ServerMetadata", "Empty", "ServerMetadata", self._server),
                ("ModelReady", "Model", "Ready", self._model_ready),
                ("ModelMetadata", "Model", "ModelMetadata", self._described),
                ("ModelConfig", "Model", "ModelConfig", self._config),
                ("ModelStatistics", "Model", "ModelStatistics", self._counted),
                ("RepositoryIndex", "RepositoryIndexRequest", "RepositoryIndex", self._index),
                ("RepositoryModelLoad", "Change", "Empty", self._load),
                ("RepositoryModelUnload", "Change", "Empty", self._unload),
            )
        }
        self._infer_request = message("ModelInferRequest")
        self._stream_answer = message("ModelStreamInferResponse")

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return what handles a call."""
        path = handler_call_details.method
        given = dict(handler_call_details.invocation_metadata).get("authorization", b"")
        given = given.encode() if isinstance(given, str) else given
        who = self._tokens.find(given)
        name = path.removeprefix(SERVICE)

        async def handle(_: Any, context: Any) -> None:
            with self._traffic.exchange(GRPC, "POST", path, _client(context.peer())) as one:
                one.token = who.name if who else one.token
                try:
                    await self._handle(name if path != name else "", who, one, context)
                    one.code = grpc.StatusCode.OK.name
                except asyncio.CancelledError:
                    one.code = grpc.StatusCode.CANCELLED.name
                    raise
                except Exception as error:
                    if context.cancelled():  # the client has gone: nobody is told
                        one.code = grpc.StatusCode.CANCELLED.name
                        return
                    await self._refuse(error, one, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _handle(self, name: str, who: Holder | None, one: Exchange, context: Any) -> None:
        if name in (*self._methods, "ModelInfer", "ModelStreamInfer"):
            one.route = one.path
        if name == OPEN:
            await self._answer(self._methods[name], None, one, context)
            return
        if who is None:
            raise Refusal(401, "a token is needed: metadata 'authorization', 'Bearer TOKEN'")
        who.take()
        if name == "ModelStreamInfer":
            with self._open(who):
                await self._stream(who, one, context)
        elif name == "ModelInfer":
            asked = await self._read(self._infer_request, self._body_s, one, context)
            await _write(await self._infer(asked, who, context), one, context)
        elif method := self._methods.get(name):
            await self._answer(method, who, one, context)
        else:
            raise Refusal(501, "there is no such method")

    async def _answer(
        self, method: Method, who: Holder | None, one: Exchange, context: Any
    ) -> None:
        asked = await self._read(method.asked, self._body_s, one, context)
        await _write(method.answered(**await method.handler(who, asked)), one, context)

    async def _refuse(self, error: Exception, one: Exchange, context: Any) -> None:
        refusal = refusal_of(error, f"{one.path[:80]!r}")
        code = CODES.get(refusal.status, grpc.StatusCode.INTERNAL)
        one.code = code.name
        self._traffic.refuse(refusal.status, refusal.code)
        # The rest of a message is not read: who still sends it learns of the refusal.
        named = [(CODE, refusal.code)] if refusal.code else []
        named += [(RETRY, str(refusal.retry_s))] if refusal.retry_s else []
        await context.abort(code, refusal.text, tuple(named))

    # ---- messages

    async def _read(self, kind: Any, seconds: float, one: Exchange, context: Any) -> Any:
        """Read a message."""
        try:
            async with asyncio.timeout(seconds):
                data = await context.read()
        except TimeoutError:
            raise Refusal(408, f"no message within {seconds:g} s") from None
        if data is grpc.aio.EOF:
            return None if kind is self._infer_request and one.received else kind()
        one.received += len(data)
        return wire.decode(kind, data)

    # ---- inference

    async def _infer(self, asked: Any, who: Holder, context: Any) -> Any:
        service = infer.find(self._hub, who, asked.model_name, asked.model_version or None)
        infer.check_dtypes(service)
        size = asked.ByteSize()
        if size > service.most_bytes:
            raise Refusal(413, f"the message is larger than {service.most_bytes} bytes")
        with self._hub.memory.hold(size):
            request = wire.read(asked, service.inputs, service.outputs)
            left = context.time_remaining()
            limit_s = self._limit_s if left is None else min(self._limit_s, max(left, 0.0))
            outputs = await infer.ask(self._hub, self._statistics, limit_s, service, request)
        return wire.build(service.name, service.version, request, outputs)

    @contextmanager
    def _open(self, who: Holder) -> Iterator[None]:
        """Count an open stream: one token must leave calls for the others.

        Raises:
            Refusal: If its token has too many.
        """
        if self._streams[who.name] >= self._most_streams:
            text = f"the token '{who.name}' has {self._most_streams} streams open; close one"
            raise Refusal(429, text, retry_s=1)
        self._streams[who.name] += 1
        try:
            yield
        finally:
            self._streams[who.name] -= 1

    async def _stream(self, who: Holder, one: Exchange, context: Any) -> None:
        """Answer requests one after the other; one that fails does not end the stream.

        Each of them counts for the rate of the token; the first one is that which opened the
        stream. One too many ends it: who sends more is not read.
        """
        is_first = True
        while True:
            asked = await self._read(self._infer_request, self._limit_s, one, context)
            if asked is None:
                return
            if not is_first:
                who.take()
            is_first = False
            try:
                answer = {"infer_response": await self._infer(asked, who, context)}
            except Exception as error:
                refusal = refusal_of(error, f"{one.path[:80]!r}")
                self._traffic.refuse(refusal.status, refusal.code)
                answer = {"error_message": refusal.text}
            await _write(self._stream_answer(**answer), one, context)

    # ---- the rest

    async def _live(self, who: Any, asked: Any) -> dict[str, Any]:
        return {"live": True}

    async def _ready(self, who: Holder, asked: Any) -> dict[str, Any]:
        return {"ready": self._models.all_ready(who)}

    async def _server(self, who: Any, asked: Any) -> dict[str, Any]:
        return self._models.server()

    async def _model_ready(self, who: Holder, asked: Any) -> dict[str, Any]:
        return {"ready": self._models.is_ready(who, asked.name, asked.version)}

    async def _described(self, who: Holder, asked: Any) -> dict[str, Any]:
        table = self._models.described(who, asked.name, asked.version)
        return {
            key: table[key]
            for key in self._methods["ModelMetadata"].answered.DESCRIPTOR.fields_by_name
        }

    async def _config(self, who: Holder, asked: Any) -> dict[str, Any]:
        return {"config": wire.configured(self._models.config(who, asked.name, asked.version))}

    async def _counted(self, who: Holder, asked: Any) -> dict[str, Any]:
        return self._models.statistics(who, asked.name, asked.version)

    async def _index(self, who: Holder, asked: Any) -> dict[str, Any]:
        return {"models": self._models.index(who, only_ready=asked.ready)}

    async def _load(self, who: Holder, asked: Any) -> dict[str, Any]:
        await self._models.load(who, asked.model_name, wire.parameters(asked.parameters))
        return {}

    async def _unload(self, who: Holder, asked: Any) -> dict[str, Any]:
        await self._models.unload(who, asked.model_name)
        return {}


async def _write(answer: Any, one: Exchange, context: Any) -> None:
    data = answer.SerializeToString()
    one.sent += len(data)
    await context.write(data)


def _client(peer: str) -> str:
    """The address of a client, without the port, as HTTP logs it."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
