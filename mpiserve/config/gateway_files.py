"""The files that the table `[gateway]` names: tokens of clients, and a certificate."""

from __future__ import annotations

import math
import os
import re
import ssl
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpiserve.config.gateway import GatewayConfig
from mpiserve.config.values import line_error, shown, suggest
from mpiserve.errors import ConfigError

JOB = "job"  # the name of the token of the endpoint file
NOBODY = "-"  # stands in the log for no token
LEAST = 32  # characters of a token
NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{LEAST - 1}}}")  # in logs: so it can be no token
TOKEN = re.compile(rf"[!-~]{{{LEAST},512}}")  # what a header can carry, and nobody can guess
KEYS = ("token", "rate", "burst", "services", "change")
MOST_BYTES, MOST_TOKENS = 1 << 20, 1000  # of the file
LEAST_RATE, MOST_RATE = 1e-6, 1e6


class TokenEntry(NamedTuple):
    """What the file says of one token.

    Attributes:
        name: What logs call it.
        token: What its clients send.
        rate: The most requests a second; 0 for any number.
        burst: The most at once.
        services: What it may use; None for all services.
        change: Whether it may load and unload models.
    """

    name: str
    token: str
    rate: float = 0.0
    burst: int = 1
    services: tuple[str, ...] | None = None
    change: bool = False


def read_tokens(path: Path, services: Sequence[str]) -> list[TokenEntry]:
    """Read a file with a table for each token. No error has anything of a token.

    Args:
        path: The file, which only its owner can read.
        services: The names of the services of the configuration.

    Raises:
        ConfigError: If it is none, or if others can read it.
    """
    try:
        tables = tomllib.loads(_private_text(path))
    except OSError as error:
        raise line_error(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # their texts may have a part of a token
        raise line_error(path, "is no TOML in UTF-8, with a table for each token") from None
    if len(tables) > MOST_TOKENS:
        raise line_error(path, f"has {len(tables)} tokens; {MOST_TOKENS} at most")
    numbered = enumerate(tables.items(), 1)
    found = [_Reader(path, i, *item, services).entry() for i, item in numbered]
    names: dict[str, str] = {}
    for entry in found:
        if (other := names.setdefault(entry.token, entry.name)) != entry.name:
            raise line_error(path, f"{other} and {entry.name} have the same token")
    return found


def _private_text(path: Path) -> str:
    with open(path, "rb") as file:
        _check_private(path, os.fstat(file.fileno()))
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise line_error(path, f"is larger than {MOST_BYTES} bytes")
    return data.decode()


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise line_error(path, f"can be read by others than its owner: chmod 600 {path}")


class _Reader:
    """Reads the table of a token. What is wrong is an error that names the key.

    Args:
        path: The file.
        number: Of the table, from 1.
        name: Of the table.
        table: The table.
        services: The names of the services of the configuration.
    """

    def __init__(
        self, path: Path, number: int, name: str, table: Any, services: Sequence[str]
    ) -> None:
        self._path, self._name, self._services = path, name, services
        self._shown = name if len(name) < LEAST else f"table {number}"
        if not NAME.fullmatch(name) or name in (JOB, NOBODY):
            text = f"a name is 1 to {LEAST - 1} letters, digits, '_', '.' and '-'"
            raise self._wrong("", f"{text}, and not '{JOB}' or '{NOBODY}'")
        if not isinstance(table, Mapping):
            raise self._wrong("", f"must be a table, [{self._shown}], with a token")
        self._table = table

    def entry(self) -> TokenEntry:
        """Return what the table says."""
        for key in self._table:
            if key not in KEYS:
                raise self._wrong("", f"unknown key {_unless_long(key)} {suggest(key, KEYS)}")
        rate = self._rate()
        change = self._table.get("change", False)
        if type(change) is not bool:
            raise self._wrong(".change", "must be true or false")
        return TokenEntry(
            self._name, self._token(), rate, self._burst(rate), self._named_services(), change
        )

    def _wrong(self, key: str, text: str) -> ConfigError:
        return line_error(self._path, f"{self._shown}{key}: {text}")

    def _token(self) -> str:
        token = self._table.get("token")
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            text = "must be 32 to 512 printable ASCII characters without blanks"
            raise self._wrong(".token", text)
        return token

    def _rate(self) -> float:
        if "rate" not in self._table:
            return 0.0
        rate = self._table["rate"]
        if type(rate) not in (int, float) or not LEAST_RATE <= rate <= MOST_RATE:  # NaN is neither
            text = f"must be {LEAST_RATE:g} to {MOST_RATE:g} requests a second"
            raise self._wrong(".rate", text)
        return float(rate)

    def _burst(self, rate: float) -> int:
        if "burst" not in self._table:
            return max(1, math.ceil(rate))
        burst = self._table["burst"]
        if type(burst) is not int or not 1 <= burst <= MOST_RATE or not rate:
            raise self._wrong(".burst", f"must be 1 to {MOST_RATE:g} requests, beside a rate")
        return burst

    def _named_services(self) -> tuple[str, ...] | None:
        names = self._table.get("services")
        if names is None:
            return None
        if not isinstance(names, list) or not names:
            text = "must be a list of names; without it, all services are meant"
            raise self._wrong(".services", text)
        for name in names:
            if name not in self._services:
                hint = suggest(name, self._services) if isinstance(name, str) else ""
                raise self._wrong(".services", f"no service {_unless_long(name)} {hint}")
        return tuple(names)


def _unless_long(value: Any) -> str:
    """Write a value, unless it may be a token that stands in the wrong place."""
    text = shown(value)
    return text if len(text) < LEAST else "(long: it may be a token)"


def tls_context(certificate: str | Path, key: str | Path) -> ssl.SSLContext:
    """Read a certificate and its key, for a server.

    Raises:
        ConfigError: If they cannot be read, do not belong together, or need a password.
    """
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # of ssl too
        why = error.strerror if isinstance(error, FileNotFoundError) else "not a pair in PEM"
        text = f"tls_certificate and tls_key ({key}) cannot be used: {why}"
        raise line_error(certificate, f"{text}; a key must have no password") from None
    return made


def _no_password() -> str:
    raise ValueError("a key with a password")  # instead of asking for it at a terminal


def check_files(config: GatewayConfig, folder: Path, services: Sequence[str]) -> list[TokenEntry]:
    """Read the files of the table, and return the tokens of its clients.

    Args:
        config: The table.
        folder: Of the configuration's file.
        services: The names of its services.

    Raises:
        ConfigError: If one cannot be used.
    """
    if config.tls_certificate:
        key = folder / config.tls_key
        tls_context(folder / config.tls_certificate, key)
        _check_private(key, key.stat())
    return read_tokens(folder / config.tokens_file, services) if config.tokens_file else []
