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
from typing import Any

from mpiserve.config.gateway import Address, GatewayConfig
from mpiserve.errors import Code, Error

FILE = "mpiserve-endpoint.json"
SOCKET = "gateway.sock"
BACKLOG = 2048
TOKEN_BYTES = 32


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

    Raises:
        Error: If it cannot listen there, or not write the file.
    """

    def __init__(self, config: GatewayConfig, folder: Path) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._made: Path | None = None
        self._path: Path | None = None
        where = self._where(config, folder)
        self.listener = self._listen(where)
        self.url = self._url(where, tls=bool(config.tls_certificate))
        name = config.endpoint_file
        self.file = folder / name if name else self._beside(where)
        self._write()

    def close(self) -> None:
        """Remove the socket and the file."""
        self.listener.close()
        for path in (self._path, self.file):
            with suppress(OSError):
                if path:
                    path.unlink()
        if self._made:
            shutil.rmtree(self._made, ignore_errors=True)

    def _where(self, config: GatewayConfig, folder: Path) -> Address:
        where = config.where or Address(str(self._private() / SOCKET))
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

    def _listen(self, where: Address) -> socket.socket:
        family = socket.AF_UNIX if where.path else _family(where.host)
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            if where.path:
                self._bind(made, Path(where.path))
            else:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((where.host, where.port))
            made.listen(BACKLOG)
        except OSError as error:
            made.close()
            at = where.path or f"{where.host}:{where.port}"
            text = f"the gateway cannot listen at {at}: {error.strerror}"
            raise Error(Code.ECONFIG, f"{text}; set address in [gateway]") from None
        return made

    def _bind(self, made: socket.socket, path: Path) -> None:
        """Nobody else may connect at any time: others cannot write to the socket's file."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        self._path = path

    def _url(self, where: Address, *, tls: bool) -> str:
        if where.path:
            return f"unix:{where.path}"
        host, port = self.listener.getsockname()[:2]
        return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"

    def _write(self) -> None:
        """Write the file anew: one that is there may be readable by others."""
        table = {"url": self.url, "token": self.token, "pid": os.getpid()}
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


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _remove_stale(path: Path) -> None:
    """Remove the socket of a gateway that has been killed; one that answers is another's."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(0, "there is a file of this name")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()
                return
        raise FileExistsError(0, "another program listens there")


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
