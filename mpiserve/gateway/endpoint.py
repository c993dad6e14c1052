"""Where clients find the gateway: the socket, the token, and the file that tells both."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mpiserve.config.gateway import Address, GatewayConfig
from mpiserve.errors import Code, Error
from mpiserve.gateway.sockets import listening, written

FILE = "mpiserve-endpoint.json"
SOCKET, GRPC_SOCKET, INSIDE = "gateway.sock", "grpc.sock", "grpc-inside.sock"
TOKEN_BYTES = 32


class Grpc(NamedTuple):
    """Where clients of gRPC come.

    Attributes:
        url: The address, as they write it.
        listener: The socket.
        inside: The path of the socket of gRPC's own server, which only the gate connects to.
    """

    url: str
    listener: socket.socket
    inside: str


class Endpoint:
    """The socket at which clients come, from construction to `close`.

    The rank owns it, so that clients wait, and find the same address, while a child is started
    again.

    Args:
        config: The table of the configuration.
        folder: Of the configuration's file.

    Attributes:
        url: The address.
        token: What clients must know.
        file: The file that tells both.
        listener: The socket.
        grpc: The same for gRPC; None for none.

    Raises:
        Error: If it cannot listen there, or not write the file.
    """

    def __init__(self, config: GatewayConfig, folder: Path) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._made: Path | None = None
        where = self._where(config.where, SOCKET, folder)
        self.listener = listening(where, "address")
        self.url = _url(where, self.listener, f"http{'s' * bool(config.tls_certificate)}://")
        self._paths = [where.path]
        self.grpc: Grpc | None = None
        if config.grpc_address:
            mine = self._where(config.grpc_where, GRPC_SOCKET, folder)
            listener = listening(mine, "grpc_address")
            inside = str(self._private() / INSIDE)
            self.grpc = Grpc(_url(mine, listener, ""), listener, inside)
            self._paths += [mine.path, inside]
        name = config.endpoint_file
        self.file = folder / name if name else self._beside(where)
        self._write()

    def close(self) -> None:
        """Remove the sockets and the file."""
        self.listener.close()
        if self.grpc:
            self.grpc.listener.close()
        for path in filter(None, [*self._paths, str(self.file)]):
            with suppress(OSError):
                os.unlink(path)
        if self._made:
            shutil.rmtree(self._made, ignore_errors=True)

    def _where(self, where: Address | None, name: str, folder: Path) -> Address:
        where = where or Address(str(self._private() / name))
        return where._replace(path=str(folder / where.path)) if where.path else where

    def _private(self) -> Path:
        """Make the folder that only the user can enter."""
        if self._made is None:
            base = os.environ.get("XDG_RUNTIME_DIR", "")
            usable = base and os.access(base, os.W_OK | os.X_OK)
            self._made = Path(tempfile.mkdtemp(prefix="mpiserve-", dir=base if usable else None))
        return self._made

    def _beside(self, where: Address) -> Path:
        made = self._made if where.path and self._made else self._private()
        return made / FILE

    def _write(self) -> None:
        """Write the file anew: one that is there may be readable by others."""
        table = {"url": self.url, "token": self.token, "pid": os.getpid()}
        if self.grpc:
            table["grpc"] = self.grpc.url
        new = self.file.with_name(self.file.name + ".new")
        try:
            with suppress(FileNotFoundError):
                new.unlink()
            number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(number, "w") as file:
                json.dump(table, file)
            new.replace(self.file)
        except OSError as error:
            text = f"the gateway cannot write {self.file}: {error.strerror}"
            raise Error(Code.ECONFIG, f"{text}; set endpoint_file in [gateway]") from None


def _url(where: Address, listener: socket.socket, scheme: str) -> str:
    if where.path:
        return f"unix:{where.path}"
    return scheme + written(*listener.getsockname()[:2])


def read_file(path: str | Path) -> dict[str, Any]:
    """Read an endpoint file.

    Raises:
        Error: If it is none, or if others than its owner can read it.
    """
    try:
        if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            text = f"{path} can be read by others than its owner: chmod 600 {path}"
            raise Error(Code.ECONFIG, text)
        table = json.loads(Path(path).read_text())
        return {"url": str(table["url"]), "token": str(table["token"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{path} is no endpoint file of a gateway: {error}"
        raise Error(Code.ECONFIG, text) from None
