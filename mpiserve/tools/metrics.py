"""The program `metrics`: what ranks of this node show, for Prometheus.

It is a process of its own, so that a scrape takes no time of a rank.
"""

from __future__ import annotations

import hmac
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mpiserve.observe import exposition
from mpiserve.observe.ranks import Ranks, allow_many

LOOK = 0.25  # seconds between two looks at whether the job has ended
BEGIN = 30.0  # seconds that its ranks have to appear
PATIENCE = 10.0  # seconds that a connection may last
HOST = "127.0.0.1"


def once(run: int | None) -> int:
    """Print the metrics of the jobs of this node; 1 if there is none."""
    allow_many()
    ranks = Ranks(run)
    ranks.find()
    text = exposition.text(ranks.read())
    for other in ranks.foreign:
        _complain(f"process {other.pid} is of mpiserve {other.library}, and cannot be read")
    if not text:
        _complain("no job of this user runs on this node")
    print(text, end="")
    return 0 if text else 1


def _complain(text: str) -> None:
    print(f"mpiserve: {text}", file=sys.stderr, flush=True)


# ---- files for the textfile collector of a node exporter


def textfile(folder: str, run: int | None, every: float) -> int:
    """Write the metrics of each job into a file of a folder, until it has ended.

    Args:
        folder: Where; it is there.
        run: The job, whose end is the end; None: all jobs, and no end.
        every: Seconds between two files.

    Returns:
        The exit status: 1 if a file cannot be written, or there is no such job.
    """
    _step_aside()
    allow_many()
    ranks = Ranks(run, kept=run is not None)
    begun = written = time.monotonic() - every
    try:
        while run is None or not _has_ended(ranks, begun):
            if time.monotonic() - written >= every:
                written = time.monotonic()
                ranks.find()
                _write(ranks, Path(folder))
            time.sleep(min(LOOK, every))
        _write(ranks, Path(folder))
    except OSError as error:
        _complain(f"the metrics cannot be written: {error}")
        return 1
    return 0 if ranks.read() else 1


def _has_ended(ranks: Ranks, begun: float) -> bool:
    """Have all ranks of a job on this node ended? They may have just begun to appear."""
    ranks.bury()
    found = ranks.read()
    if not found:
        return time.monotonic() - begun > BEGIN
    return not any(rank.lives for rank in found)


def _step_aside() -> None:
    """Leave the cores of the rank that has started this process to it."""
    with suppress(OSError):
        os.nice(19)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _write(ranks: Ranks, folder: Path) -> None:
    """A file for each job; who reads it sees a whole one."""
    found = ranks.read()
    for run in dict.fromkeys(rank.run for rank in found):
        mine = [rank for rank in found if rank.run == run]
        node = min(int(rank.head["node"]) for rank in mine)
        file = folder / f"mpiserve-{exposition.run_label(run)}-{node}.prom"
        new = file.with_suffix(f".new{os.getpid()}")
        new.write_text(exposition.text(mine))
        new.chmod(0o644)  # another user's exporter reads it
        new.replace(file)


# ---- a port or a socket


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics."""

    server: _Server
    timeout = PATIENCE
    server_version, sys_version = "mpiserve", ""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if not self._is_allowed():
            self._answer(401, "a token is needed: Authorization: Bearer TOKEN\n")
        elif self.path.split("?")[0] != "/metrics":
            self._answer(404, "there is /metrics\n")
        else:
            self._answer(200, self.server.text(), exposition.TYPE)

    def _is_allowed(self) -> bool:
        token = self.server.token
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        return not token or hmac.compare_digest(given, b"Bearer " + token)

    def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scrape comes every few seconds."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    token = b""

    def __init__(self, address: Any, family: int, run: int | None) -> None:
        self.address_family = family
        self._ranks, self._lock = Ranks(run), threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, 0

    def get_request(self) -> Any:
        """Accept a connection, and end it in time, however slowly it sends."""
        connection, address = self.socket.accept()
        ending = threading.Timer(PATIENCE, _shut, [connection])
        ending.daemon = True
        ending.start()
        return connection, address or ("", 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of this program."""

    def text(self) -> str:
        with self._lock:
            self._ranks.find()
            return exposition.text(self._ranks.read())


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def read_token(name: str) -> bytes:
    """Read a token from a file that nobody else can read.

    Raises:
        OSError: If it cannot be read.
        ValueError: If others may read it, or it is too short to be a secret.
    """
    path = Path(name)
    status = path.stat()
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid != os.getuid():
        raise ValueError(f"{name} must be yours, and nobody else's to read: chmod 600 {name}")
    token = path.read_bytes().strip()
    if len(token) < 16:
        raise ValueError(
            f"{name} holds {len(token)} bytes: a token has at least 16, such as "
            f"those of `python -c 'import secrets; print(secrets.token_hex(32))'`"
        )
    return token


@contextmanager
def _bound_socket(path: str, run: int | None) -> Iterator[_Server]:
    """A unix socket that only this user can connect to; removed at the end."""
    before = os.umask(0o177)
    try:
        server = _Server(path, socket.AF_UNIX, run)
    finally:
        os.umask(before)
    try:
        yield server
    finally:
        server.server_close()
        with suppress(OSError):
            os.unlink(path)


@contextmanager
def _bound_port(port: int, token: bytes, run: int | None) -> Iterator[_Server]:
    """A port of this host alone, which all its users can connect to: hence the token."""
    with _Server((HOST, port), socket.AF_INET, run) as server:
        server.token = token
        yield server


def listen(*, path: str | None, port: int | None, token_file: str | None, run: int | None) -> int:
    """Answer scrapes at a unix socket, or at a port of this host, until this process is ended.

    Returns:
        The exit status: 1 if that cannot be had.
    """
    allow_many()
    try:
        if path is not None:
            bound = _bound_socket(path, run)
        elif token_file is None:
            raise ValueError("every user of this host can connect to a port: --token-file FILE")
        else:
            bound = _bound_port(port or 0, read_token(token_file), run)
        with bound as server:
            where = path or "http://{}:{}/metrics".format(*server.server_address)
            _complain(f"metrics of this node at {where}")
            server.serve_forever()
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as error:
        _complain(str(error))
        return 1
    return 0
