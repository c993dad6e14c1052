"""Where clients come in: one that speaks TLS is counted before its handshake.

A server of asyncio or uvloop makes a connection known when its handshake has ended, and not at all
if that fails.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from mpiserve.gateway.protocol import Counted
from mpiserve.gateway.sockets import BACKLOG
from mpiserve.gateway.traffic import SLOW

logger = logging.getLogger("mpiserve")

REST = 0.1  # seconds until the next try, where no descriptors are left


async def opened(
    listener: socket.socket, make: Callable[[], Counted], tls: ssl.SSLContext | None
) -> Any:
    """Let clients come.

    Args:
        listener: Where they come.
        make: Makes the protocol of one.
        tls: The certificate; None for none.

    Returns:
        What has `close` and `wait_closed`, as a server of asyncio.
    """
    if tls:
        return _Door(listener, make, tls)
    return await asyncio.get_running_loop().create_server(make, sock=listener, backlog=BACKLOG)


class _Door:
    """Lets those in who speak TLS, from construction to `close`."""

    def __init__(
        self, listener: socket.socket, make: Callable[[], Counted], tls: ssl.SSLContext
    ) -> None:
        listener.setblocking(False)
        self._listener, self._make, self._tls = listener, make, tls
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Let nobody in any more, and send away who has not ended the handshake."""
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()

    async def wait_closed(self) -> None:
        """Wait until they have gone."""
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(REST)
                continue
            try:
                self._begin(connection)
            except Exception:  # costs this client alone
                logger.exception("a client could not come in")
                connection.close()

    def _begin(self, connection: socket.socket) -> None:
        client = self._make()
        if not client.enter():
            connection.close()
            return
        handshake = self._loop.create_task(self._shake_hands(client, connection))
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, client: Counted, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: client,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=client.limits.head_s,
            )
        except ConnectionAbortedError:  # the time is over
            client.limits.refused[SLOW] += 1
        except OSError:  # it speaks no TLS, or has gone
            pass
        finally:
            if client.transport is None:
                client.leave()
