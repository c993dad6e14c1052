"""Servers that run the same model: which one gets a request, and what happens when it fails."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError
from urllib3.response import BaseHTTPResponse

from mpiserve.backends.remote.api import Api, Message, NotAskedError
from mpiserve.backends.remote.settings import Settings
from mpiserve.errors import Code, ModelError
from mpiserve.wire.json_body import error_text

BUSY = (429, 503)  # statuses of a server that asks for patience
GATEWAYS = (502, 504)  # of a gateway that does not reach its server
FIRST_REST, LONGEST_REST = 0.1, 2.0  # seconds without requests, after an error of a server
LONGEST_PATIENCE = 60.0  # seconds that a server may ask for
CONNECT = 5.0  # seconds that a connection may take to come about
LOOK = 0.05  # seconds between two looks whether anybody waits for the answer


class _Endable(HTTPConnection):
    """A connection that its server can end while a thread waits at it."""

    server: Server

    def connect(self) -> None:
        super().connect()
        self.server.know(self)


class _UnixConnection(HTTPConnection):
    """HTTP over a socket of this machine, whose path takes the place of a host."""

    path = ""

    def _new_conn(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(CONNECT)
            made.connect(self.path)
        except OSError as error:
            made.close()
            raise NewConnectionError(self, str(error)) from error
        return made


def _pool(server: Server, url: str, settings: Settings) -> Any:
    kind: Any
    known: dict[str, Any] = {"server": server}
    if url.startswith("unix:"):
        pool = HTTPConnectionPool("localhost", maxsize=settings.connections)
        kind, known = _UnixConnection, known | {"path": url[len("unix:") :]}
    else:
        trusted = {"ca_certs": settings.ca_file} if url.startswith("https:") else {}
        pool = urllib3.connection_from_url(url, maxsize=settings.connections, **trusted)
        kind = pool.ConnectionCls
    pool.ConnectionCls = type("Connection", (_Endable, kind), known)
    return pool


class Server:
    """One server.

    Args:
        url: Its address.
        settings: How to reach it.

    Attributes:
        under_way: Requests that it has.
        rests_until: Before which it gets requests only if no other can have them.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self._pool = _pool(self, url, settings)
        self._lock = threading.Lock()
        self._connections: WeakSet[HTTPConnection] = WeakSet()
        self._closed = False
        self._token = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        self._rest = FIRST_REST
        self.under_way = 0
        self.rests_until = 0.0

    def ask(self, message: Message, limit: float) -> BaseHTTPResponse:
        """Send a request, POST if it has a body, and wait for the answer."""
        return self._pool.urlopen(
            "GET" if message.body is None else "POST",
            message.path,
            body=message.body,
            headers={**message.headers, **self._token},
            timeout=urllib3.Timeout(connect=min(CONNECT, limit), read=limit),
            retries=False,
            redirect=False,
        )

    def well(self) -> None:
        """Note that it has answered."""
        self._rest, self.rests_until = FIRST_REST, 0.0

    def rest(self, seconds: float | None = None) -> None:
        """Note that it did not answer, or that it asked for patience."""
        self.rests_until = time.monotonic() + (self._rest if seconds is None else seconds)
        self._rest = min(2 * self._rest, LONGEST_REST)

    def know(self, connection: HTTPConnection) -> None:
        """Note a new connection, which `close` ends; for this module."""
        with self._lock:
            self._connections.add(connection)
            closed = self._closed
        if closed:
            _end(connection)

    def close(self) -> None:
        """Close its connections. Threads that wait for an answer get an error."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        self._pool.close()
        for connection in connections:
            _end(connection)


def _end(connection: HTTPConnection) -> None:
    """Wake the thread that waits at a connection; closing a socket alone would not."""
    with suppress(OSError, TypeError):  # the socket is closed, or None
        # Not that of SSLSocket, which takes the state of TLS away from under that thread.
        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


class Servers:
    """Passes each request to one of several servers, and to another one if that fails.

    A request of inference may be repeated: the answer depends on its inputs alone. Threads may
    call `infer` at the same time.

    Args:
        settings: How to reach them.
        api: The protocol.
        patient: Whether a request is repeated until its time is over; otherwise it fails once
            each server has failed, or rests.
    """

    def __init__(self, settings: Settings, api: Api, patient: bool = True) -> None:
        self._settings = settings
        self._patient = patient
        self._api = api
        self.servers = [Server(url, settings) for url in settings.urls]
        self._lock = threading.Lock()

    def infer(self, message: Message, wanted: Callable[[], bool]) -> BaseHTTPResponse:
        """Have a server answer a request of inference; repeat it as `patient` says.

        Args:
            message: The request.
            wanted: Whether somebody still waits for the answer.

        Raises:
            ModelError: If none has answered in time, with what was tried, or one has answered that
                it cannot, with its text.
            NotAskedError: If no server was asked.
        """
        end = time.monotonic() + self._settings.request_timeout_s
        tried: dict[str, str] = {}
        while (left := end - time.monotonic()) > 0 and wanted():
            server = self._take()
            if (pause := server.rests_until - time.monotonic()) > 0:
                if not self._patient:
                    self._give(server)
                    break
                time.sleep(min(pause, left, LOOK))
                self._give(server)
                continue
            try:
                reply = server.ask(message, left)
                if self._answers(server, reply, left):
                    return reply
                tried[server.url] = f"status {reply.status}"
            except HTTPError as error:
                _on_error(server, error, again=server.url not in tried)
                tried[server.url] = _cause(error)
            finally:
                self._give(server)
        raise (ModelError if tried else NotAskedError)(Code.EMODEL, self._failed(tried))

    def close(self) -> None:
        """Close all connections."""
        for server in self.servers:
            server.close()

    def _answers(self, server: Server, reply: BaseHTTPResponse, limit: float) -> bool:
        """Whether a reply is the answer; if not, another server, or this one later, may answer.

        Raises:
            ModelError: If the answer is that the server cannot.
        """
        if reply.status in BUSY:
            server.rest(_patience(reply))
        elif reply.status in GATEWAYS or (reply.status != 200 and self._starts(server, limit)):
            server.rest()
        else:
            server.well()
            if reply.status == 200:
                return True
            text = error_text(reply.data)
            raise ModelError(Code.EMODEL, f"{server.url}: status {reply.status}: {text}")
        return False

    def _starts(self, server: Server, limit: float) -> bool:
        """Whether an error came since the server is starting: Triton knows no model then."""
        ready = server.ask(Message(self._api.ready_path), limit).status
        return ready not in self._api.ready

    def _take(self) -> Server:
        """Choose a server: one that is well with the fewest requests, else the next that will."""
        now = time.monotonic()
        with self._lock:
            server = min(self.servers, key=lambda s: (max(s.rests_until, now), s.under_way))
            server.under_way += 1
        return server

    def _give(self, server: Server) -> None:
        with self._lock:
            server.under_way -= 1

    def _failed(self, tried: Mapping[str, str]) -> str:
        seconds = f" within {self._settings.request_timeout_s:g} s" if self._patient else ""
        what = "; ".join(f"{url}: {why}" for url, why in tried.items())
        urls = ", ".join(self._settings.urls)
        return f"no server has answered{seconds}: {what or urls + ' rest after errors'}"


def _patience(reply: BaseHTTPResponse) -> float | None:
    """The seconds that a server asks for, if it says so."""
    try:
        seconds = urllib3.Retry().get_retry_after(reply)
    except HTTPError:  # no valid header
        return None
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_PATIENCE)


def _on_error(server: Server, error: HTTPError, again: bool) -> None:
    """A connection that was kept may have been closed meanwhile: the next try makes a new one."""
    if not (again and isinstance(error, ProtocolError)):
        server.rest()


def _cause(error: HTTPError) -> str:
    text = str(error)
    return text.rpartition(": ")[2] if isinstance(error, NewConnectionError) else text
