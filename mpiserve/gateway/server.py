"""The child of the gateway's rank: it speaks HTTP, and knows no MPI.

It is started by the rank with two descriptors, of the link to the rank and of the socket at which
clients come, and the settings as JSON in its environment. Its death harms nobody: the rank starts
another one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from typing import IO, Any

import uvicorn
import uvloop

from mpiserve.gateway.app import App
from mpiserve.gateway.hub import Hub
from mpiserve.gateway.protocol import Limits, limited

SETTINGS = "MPISERVE_GATEWAY_SETTINGS"
DRAIN = 3.0  # seconds that requests under way have at the end
BACKLOG = 2048
KEEP = 75  # seconds that a connection may rest between two requests


def main() -> None:
    """Serve until the rank says that the job ends, or is gone."""
    settings = json.loads(os.environ.pop(SETTINGS))
    logging.basicConfig(
        format=f"%(asctime)s %(levelname)s mpiserve rank {settings['rank']}: gateway: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=logging.ERROR,
    )
    link, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, link, listener))


async def _serve(settings: dict[str, Any], link: socket.socket, listener: socket.socket) -> None:
    hub = Hub(link, settings["queue"], lambda: end(server))
    app = App(
        hub,
        settings["token"],
        settings["request_timeout_s"],
        settings["version"],
        _opened(settings["access_log"]),
    )
    limits = Limits(settings["connections"], settings["head_timeout_s"], settings["body_timeout_s"])
    server = uvicorn.Server(_config(app, limits, settings))
    hub.start()
    await hub.known.wait()
    hub.say_ready()  # the socket listens already: clients wait for the few steps until accept
    await server.serve(sockets=[listener])


def end(server: uvicorn.Server) -> None:
    """Let no new clients come, and end when those that are there have their answers."""
    server.should_exit = True


def _config(app: App, limits: Limits, settings: dict[str, Any]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP,
        timeout_graceful_shutdown=int(DRAIN),
        ssl_certfile=settings["tls_certificate"] or None,
        ssl_keyfile=settings["tls_key"] or None,
    )


def _opened(name: str) -> IO[str] | None:
    return open(name, "a", buffering=1, opener=_private) if name else None


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


if __name__ == "__main__":
    main()
