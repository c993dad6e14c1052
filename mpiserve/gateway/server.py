"""The child of the gateway's rank: it speaks HTTP and gRPC, and knows no MPI.

It is started by the rank with descriptors, of the link to the rank and of the sockets at which
clients come, and the settings as JSON in its environment. Its death harms nobody: the rank starts
another one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine
from typing import IO, Any

import uvicorn
import uvloop

from mpiserve._lib import handover
from mpiserve.errors import Error
from mpiserve.gateway import accept, page
from mpiserve.gateway.app import App
from mpiserve.gateway.hub import Hub
from mpiserve.gateway.metrics import Metrics
from mpiserve.gateway.models import Models
from mpiserve.gateway.openai_api import OpenAIRoutes
from mpiserve.gateway.protocol import Limits, limited
from mpiserve.gateway.routes import Routes
from mpiserve.gateway.services import ROOM
from mpiserve.gateway.sockets import tls_of
from mpiserve.gateway.statistics import Statistics
from mpiserve.gateway.tokens import Tokens
from mpiserve.gateway.traffic import GRPC, HTTP, Traffic

SETTINGS = "MPISERVE_GATEWAY_SETTINGS"
DRAIN = 3.0  # seconds that requests under way have at the end
KEEP = 75  # seconds that a connection may rest between two requests


def main() -> None:
    """Serve until the rank says that the job ends, or is gone."""
    handover.die_with_parent(signal.SIGKILL)  # it may hang when the rank is killed
    settings = json.loads(os.environ.pop(SETTINGS))
    logging.basicConfig(
        format=f"%(asctime)s %(levelname)s mpiserve rank {settings['rank']}: gateway: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=logging.ERROR,
    )
    link, *listeners = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(settings, link, listeners))
        except Error as error:  # a certificate that has gone since the start of the rank
            sys.exit(f"mpiserve: the gateway's process ends: {error}")


async def _serve(
    settings: dict[str, Any], link: socket.socket, listeners: list[socket.socket]
) -> None:
    await Gateway(settings, link).serve(*listeners)


class Gateway:
    """What both protocols share.

    Args:
        settings: Of the child.
        link: To the rank.
    """

    def __init__(self, settings: dict[str, Any], link: socket.socket) -> None:
        self._settings = settings
        self._over = asyncio.Event()
        self._hub = Hub(link, settings["queue"], self._over.set)
        self._traffic = Traffic(_opened(settings["access_log"]))
        self._statistics = Statistics()
        self._models = Models(self._hub, self._statistics, settings["version"])
        self._limits = {protocol: self._limit() for protocol in (HTTP, GRPC)}

    async def serve(self, listener: socket.socket, for_grpc: socket.socket | None = None) -> None:
        """Answer clients until the rank says that the job ends, or is gone."""
        self._hub.start()
        await self._hub.known.wait()
        if self._over.is_set():
            return
        tokens, limits = Tokens(self._hub.tokens), self._limits[HTTP]
        tls = tls_of(listener, self._settings)
        server = _Server(_config(self._app(tokens), limits), tls)
        ends = [self._end(server)]
        if for_grpc:
            ends.append(await self._start_grpc(for_grpc, tokens))
        self._hub.say_ready()  # the sockets listen: clients wait for the few steps until accept
        await asyncio.gather(server.serve(sockets=[listener]), *ends)

    def _limit(self) -> Limits:
        times = self._settings["head_timeout_s"], self._settings["body_timeout_s"]
        return Limits(self._settings["connections"], *times, self._traffic.refused)

    def _app(self, tokens: Tokens) -> App:
        metrics = Metrics(self._hub, self._traffic, self._limits, self._settings["run"])
        limit_s = self._settings["request_timeout_s"]
        texts = OpenAIRoutes(self._hub, self._statistics, limit_s)
        more = [*page.routes(), metrics.route(), *texts.routes()]
        routes = Routes(self._models).app(more)
        return App(
            self._hub,
            tokens,
            limit_s,
            self._statistics,
            self._traffic,
            routes,
        )

    async def _end(self, server: uvicorn.Server) -> None:
        """Let no new clients come, and end when those that are there have their answers."""
        await self._over.wait()
        server.should_exit = True

    async def _start_grpc(
        self, listener: socket.socket, tokens: Tokens
    ) -> Coroutine[Any, Any, None]:
        """Start gRPC, whose packages only who wants it has; return what ends it in that way."""
        from mpiserve.gateway.grpc_server import Server
        from mpiserve.gateway.grpc_service import Service

        service = Service(
            self._hub,
            self._models,
            self._statistics,
            self._traffic,
            tokens,
            self._settings["request_timeout_s"],
            self._settings["body_timeout_s"],
            max(1, self._settings["connections"] // 2),
        )
        most = max((one.most_bytes for one in self._hub.services.values()), default=ROOM)
        server = Server(service, self._limits[GRPC], KEEP, most)
        await server.start(listener, self._settings)

        async def end() -> None:
            await self._over.wait()
            await server.stop(DRAIN)

        return end()


class _Server(uvicorn.Server):
    """uvicorn 0.54 would wait for 60 s for a client that begins no TLS, and not count it.

    Args:
        config: Of uvicorn.
        tls: The certificate; None for none.
    """

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let clients come."""
        await super().startup(sockets=[])
        for listener in sockets or ():
            self.servers.append(await accept.opened(listener, self._connection, self._tls))

    def _connection(self) -> Any:
        make: Any = self.config.http_protocol_class
        state = self.lifespan.state
        return make(config=self.config, server_state=self.server_state, app_state=state)


def _config(app: App, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP,
        timeout_graceful_shutdown=int(DRAIN),
    )


def _opened(name: str) -> IO[str] | None:
    return open(name, "a", buffering=1, opener=_private) if name else None


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


if __name__ == "__main__":
    main()
