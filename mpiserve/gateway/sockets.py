"""The sockets at which the gateway's clients come."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpiserve.config.gateway import Address
from mpiserve.config.gateway_files import tls_context
from mpiserve.errors import Code, Error

BACKLOG = 2048


def listening(where: Address, key: str) -> socket.socket:
    """Make a socket that listens.

    Args:
        where: The address.
        key: Of the configuration, for the error.

    Raises:
        Error: If it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    made = socket.socket(socket.AF_UNIX if where.path else family, socket.SOCK_STREAM)
    try:
        if where.path:
            _bind(made, Path(where.path))
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((where.host, where.port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        at = where.path or written(where.host, where.port)
        text = f"the gateway cannot listen at {at}: {error.strerror}"
        raise Error(Code.ECONFIG, f"{text}; set {key} in [gateway]") from None
    return made


def tls_of(listener: socket.socket, settings: Mapping[str, Any]) -> ssl.SSLContext | None:
    """Return the certificate for those who come to a socket, if they are to speak TLS.

    Args:
        listener: The socket; clients of one that is a file speak none.
        settings: With the names of the files, "" for none.
    """
    if not settings["tls_certificate"] or listener.family == socket.AF_UNIX:
        return None
    return tls_context(settings["tls_certificate"], settings["tls_key"])


def written(host: str, port: int) -> str:
    """Write a host and a port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(made: socket.socket, path: Path) -> None:
    """Nobody else may connect at any time: others cannot write to the socket's file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale(path)
    before = os.umask(0o177)
    try:
        made.bind(str(path))
    finally:
        os.umask(before)


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
