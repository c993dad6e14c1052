"""The child of the gateway's rank: started, started again after its death, and ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from mpiserve import __version__
from mpiserve.config.gateway import GatewayConfig
from mpiserve.gateway.endpoint import Endpoint
from mpiserve.serving.isolation.server_link import MPI_VARIABLES

NEEDED = ("httptools", "orjson", "starlette", "uvicorn", "uvloop")
NEEDED_BY_GRPC = ("grpc", "google.protobuf", "hpack")
SETTINGS = "MPISERVE_GATEWAY_SETTINGS"
FIRST_REST, LONGEST_REST = 0.1, 5.0  # seconds between the death of a child and the next one
LONG_LIFE = 30.0  # seconds after which a death is no reason to wait longer
LAST_WAIT = 5.0  # seconds for the end of a child that was killed
LONGEST_LOOK = 0.5  # seconds that count from one look at a child to the next one


def lacking(config: GatewayConfig) -> str:
    """Say what must be installed, or ""."""
    needed = (*NEEDED, *(NEEDED_BY_GRPC if config.grpc_address else ()))
    missing = [name for name in needed if not _is_there(name)]
    if not missing:
        return ""
    extras = "gateway,grpc" if config.grpc_address else "gateway"
    return f"the gateway needs {', '.join(missing)}: pip install 'mpiserve[{extras}]'"


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


class Child:
    """The process that speaks HTTP.

    Args:
        config: The table of the configuration.
        endpoint: Where clients come.
        rank: Of the world, for the log.
        run: The number of the session.
        folder: Of the configuration's file.

    Attributes:
        drains: Whether it is to end, and no other one starts.
    """

    def __init__(
        self, config: GatewayConfig, endpoint: Endpoint, rank: int, run: int, folder: Path
    ) -> None:
        files = {
            name: str(folder / getattr(config, name)) if getattr(config, name) else ""
            for name in ("access_log", "tls_certificate", "tls_key")
        }
        mine = {
            "rank": rank,
            "run": run,
            "grpc_inside": endpoint.grpc.inside if endpoint.grpc else "",
            "version": __version__,
        }
        self._settings = config.model_dump() | files | mine
        self._endpoint = endpoint
        self._process: subprocess.Popen[bytes] | None = None
        self._rest, self._since = FIRST_REST, 0.0
        self._next = 0.0
        self.drains = False

    @property
    def may_start(self) -> bool:
        """Whether it is time for a child."""
        return time.monotonic() >= self._next

    def start(self) -> socket.socket:
        """Start a child, and return the link to it.

        Raises:
            OSError: If there can be no more processes.
        """
        self._since = time.monotonic()
        mine, its = socket.socketpair()
        ends = [its, self._endpoint.listener]
        if self._endpoint.grpc:
            ends.append(self._endpoint.grpc.listener)
        numbers = [end.fileno() for end in ends]
        env = {name: value for name, value in os.environ.items() if not MPI_VARIABLES.match(name)}
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mpiserve.gateway.server", *map(str, numbers)],
                env=env | {SETTINGS: json.dumps(self._settings)},
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        return mine

    def lose(self) -> str:
        """Note that the child has gone, and return how."""
        status = self.end()
        lived = time.monotonic() - self._since
        self._rest = FIRST_REST if lived > LONG_LIFE else min(2 * self._rest, LONGEST_REST)
        self._next = time.monotonic() + self._rest
        return f"signal {-status}" if status < 0 else f"status {status}"

    def end(self, seconds: float = 0.5) -> int:
        """Wait for the end of the child, kill it after so many seconds, and return its status."""
        if self._process is None:
            return 0
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._process.kill()
        try:
            return self._process.wait(LAST_WAIT)
        except subprocess.TimeoutExpired:  # it waits for a file system that has gone
            return -signal.SIGKILL


class Watch:
    """Finds out that a child hangs: one that says nothing is asked for a sign of life.

    Args:
        limit_s: Seconds after which a silent child hangs; after half of them it is asked.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._last = time.monotonic()
        self.hear()

    @property
    def hangs(self) -> bool:
        """Whether the child has been silent for too long."""
        return self._silent_s > self._limit_s

    def hear(self) -> None:
        """Note that the child has said something."""
        self._silent_s, self._asked = 0.0, False

    def look(self) -> bool:
        """Count the time since the last look; return whether the child is to be asked now.

        Of a time in which the rank itself was stopped, as when a job is suspended, little counts.
        """
        now = time.monotonic()
        self._silent_s += min(now - self._last, LONGEST_LOOK)
        self._last = now
        asks = not self._asked and self._silent_s > self._limit_s / 2
        self._asked = self._asked or asks
        return asks
