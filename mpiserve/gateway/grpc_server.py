"""The server of gRPC in the gateway's child, with the same limits as HTTP."""

from __future__ import annotations

import os
import socket
from typing import Any

# Before it is imported: it would write what clients send into the job's log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc.aio  # noqa: E402

from mpiserve.gateway.grpc_gate import opened  # noqa: E402
from mpiserve.gateway.grpc_service import Service  # noqa: E402
from mpiserve.gateway.protocol import Limits  # noqa: E402
from mpiserve.gateway.sockets import tls_of  # noqa: E402

MOST_METADATA = 16 << 10  # bytes
UNLIMITED = -1


class Server:
    """Starts a server, and ends it.

    Args:
        service: What answers.
        limits: Of the connections.
        keep_s: Seconds that a connection may rest between two calls.
        most_bytes: The most bytes of a message that comes.
    """

    def __init__(self, service: Service, limits: Limits, keep_s: float, most_bytes: int) -> None:
        self._limits = limits
        self._server = grpc.aio.server(
            handlers=[service],
            options=_options(limits, keep_s, most_bytes),
            maximum_concurrent_rpcs=limits.connections,
        )
        self._gate: Any = None

    async def start(self, listener: socket.socket, settings: dict[str, Any]) -> None:
        """Let clients come."""
        self._server.add_insecure_port(f"unix:{settings['grpc_inside']}")
        await self._server.start()
        tls = tls_of(listener, settings)
        self._gate = await opened(listener, settings["grpc_inside"], self._limits, tls)

    async def stop(self, seconds: float) -> None:
        """Let no new clients come, and calls under way have so many seconds."""
        if self._gate:
            self._gate.close()
        await self._server.stop(seconds)


def _options(limits: Limits, keep_s: float, most_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", UNLIMITED),
        ("grpc.max_metadata_size", MOST_METADATA),
        ("grpc.absolute_max_metadata_size", MOST_METADATA),
        ("grpc.max_concurrent_streams", limits.connections),
        ("grpc.max_connection_idle_ms", int(keep_s * 1000)),
    ]
