"""The route of inference: plain ASGI, since each layer costs more than a small model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from mpiserve.errors import Code, Error, NotFoundError
from mpiserve.gateway.errors import Refusal
from mpiserve.gateway.hub import Hub
from mpiserve.gateway.services import Service
from mpiserve.gateway.statistics import Statistics
from mpiserve.gateway.tokens import Holder
from mpiserve.wire import open_inference_server as wire
from mpiserve.wire.json_body import WireError

LENGTH = wire.LENGTH.lower().encode()
HIGHEST = 101  # Triton's priority 1 is its highest: it becomes 100, 2 becomes 99, and so on

Receive = Callable[[], Awaitable[Any]]


def find(hub: Hub, who: Holder, name: str, version: str | None) -> Service:
    """Find a service.

    Raises:
        Refusal: If the token of the client is not for it.
        Error: If there is none of this name and version, or it could not load.
    """
    who.check(name)
    service = hub.services.get(name)
    if service is not None and version in (None, "", service.version):
        return service
    if service is not None:
        text = f"service '{name}' has version '{service.version}' alone"
        raise NotFoundError(Code.ENOTFOUND, text)
    if name in hub.reasons:
        raise Error(Code.EMODEL, f"service '{name}' could not be loaded: {hub.reasons[name]}")
    known = ", ".join(filter(who.may_use, hub.services))
    raise NotFoundError(Code.ENOTFOUND, f"no service '{name[:80]}'; there is {known}")


async def answer(
    hub: Hub,
    statistics: Statistics,
    limit_s: float,
    service: Service,
    headers: Mapping[bytes, bytes],
    receive: Receive,
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Answer a request of inference.

    Returns:
        The headers and the body of the answer.

    Raises:
        WireError: If the request is not what the protocol allows.
        Refusal: If it is too large, or encoded.
        Error: What the service says.
    """
    check_dtypes(service)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refusal(415, "the body is encoded: send it as it is")
    with hub.memory.hold(announced(headers, service.most_bytes)):
        return await _answer(hub, statistics, limit_s, service, headers, receive)


async def _answer(
    hub: Hub,
    statistics: Statistics,
    limit_s: float,
    service: Service,
    headers: Mapping[bytes, bytes],
    receive: Receive,
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    body = await read_body(headers, receive, service.most_bytes)
    length = headers.get(LENGTH)
    text = None if length is None else length.decode("latin-1")
    request = wire.read(body, text, service.inputs, service.outputs)
    outputs = await ask(hub, statistics, limit_s, service, request)
    return wire.build(service.name, service.version, request, outputs)


async def ask(
    hub: Hub, statistics: Statistics, limit_s: float, service: Service, request: wire.Request
) -> dict[str, tuple[wire.Tensor, np.ndarray]]:
    """Have a service answer a request of either protocol, and return all its outputs.

    Raises:
        WireError: If its parameters are not what the protocol allows.
        Refusal: If it is one of a stream.
        Error: What the service says.
    """
    _check_stream(service, request)
    priority, seconds = _options(request.parameters, limit_s)
    with statistics.request(service.name) as measured:
        queue = hub.queues[service.name]
        outputs, stats = await queue.ask(request.arrays, priority, seconds)
        measured.answered(outputs[0].shape[0] if outputs and outputs[0].ndim else 1, stats)
    return {t.name: (t, array) for t, array in zip(service.outputs, outputs, strict=True)}


def check_dtypes(service: Service) -> None:
    """Refuse a service with tensors that the protocol does not have."""
    if service.lacking:
        raise Refusal(400, f"service '{service.name}' has tensors of {service.lacking}")


def announced(headers: Mapping[bytes, bytes], most: int) -> int:
    """Return the bytes of a body that is to come; of one in pieces, the most that it may have.

    Raises:
        Refusal: If it is too large.
    """
    length = headers.get(b"content-length", b"")
    size = int(length) if 0 < len(length) < 19 else most + bool(length)
    if size > most:
        raise Refusal(413, f"the body is larger than {most} bytes")
    return size


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    """Read a body that is not too large.

    Raises:
        Refusal: If it is, or if the client goes away.
    """
    announced(headers, most)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(499, "the client has gone")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise Refusal(413, f"the body is larger than {most} bytes")
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_stream(service: Service, request: wire.Request) -> None:
    """To the model all clients of the gateway are one rank, so that their streams would mix."""
    for tensor, array in zip(service.inputs, request.arrays, strict=True):
        if tensor.name == "stream" and tensor.shape == (-1, 2) and array[:, 0].any():
            raise Refusal(501, "streams of tokens are for the ranks of the job: stream is [0, 0]")


def _options(parameters: Mapping[str, Any], limit_s: float) -> tuple[int, float]:
    """Return the priority, -100 to 100, and the seconds that a request may take."""
    priority, timeout = parameters.get("priority", 0), parameters.get("timeout")
    mine = parameters.get("mpiserve_priority", 0)
    for value, least in ((priority, 0), (0 if timeout is None else timeout, 0), (mine, -100)):
        if type(value) is not int or value < least:
            raise WireError("priority and timeout are whole numbers from 0 on")
    if mine > 100:
        raise WireError("mpiserve_priority is -100 to 100")
    if priority:
        mine = max(1, HIGHEST - priority)
    if timeout is None or (timeout == 0 and "mpiserve_priority" not in parameters):
        return mine, limit_s
    return mine, timeout * 1e-6 if timeout < limit_s * 1e6 else limit_s  # it may be no float
