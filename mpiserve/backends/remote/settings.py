"""The options of the backend `remote`."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpiserve.config import ServiceConfig
from mpiserve.config.values import shown, suggest

APIS = ("open-inference", "openai")
ENDPOINTS = ("completions", "chat")
OPENAI = ("endpoint", "extra", "system")  # options of this API alone
SCHEMES = ("http://", "https://", "unix:")
OPTIONS = (
    "api",
    "ca_file",
    "connections",
    "endpoint",
    "extra",
    "ready_timeout_s",
    "request_timeout_s",
    "system",
    "token_file",
    "token_variable",
    "url",
)
MAX_CONNECTIONS = 1024


class Settings(NamedTuple):
    """How to reach a server.

    Attributes:
        urls: Of servers that run the same model: "http://host:port", "https://...", or
            "unix:/path" for a socket.
        connections: The most requests under way, over all urls.
        request_timeout_s: The seconds that a request may take, with all repetitions.
        ready_timeout_s: The seconds that loading waits for a server that is ready.
        token: What the server knows this client by; "" for none.
        ca_file: The file of certificates that https trusts; None for the system's.
        api: The protocol, one of APIS.
        endpoint: Of the OpenAI API, one of ENDPOINTS.
        system: What a chat begins with.
        extra: More fields of requests.
    """

    urls: tuple[str, ...]
    connections: int
    request_timeout_s: float
    ready_timeout_s: float
    token: str
    ca_file: str | None
    api: str = APIS[0]
    endpoint: str = ENDPOINTS[0]
    system: str = ""
    extra: Mapping[str, Any] = {}


class OptionError(ValueError):
    """A wrong option.

    Args:
        name: Its name.
        text: What is wrong with it.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name, self.text = name, text


def settings_of(service: ServiceConfig) -> Settings:
    """Read the options of a service.

    Raises:
        OptionError: If one of them is wrong.
    """
    reader = _Reader(service)
    api = reader.one_of("api", APIS)
    reader.only_with(api == "openai", OPENAI)
    return Settings(
        urls=reader.urls(),
        connections=int(reader.number("connections", 16, 1, MAX_CONNECTIONS)),
        request_timeout_s=reader.number("request_timeout_s", 60.0, 1e-3, 1e7),
        ready_timeout_s=reader.number("ready_timeout_s", 60.0, 0.0, 1e7),
        token=reader.token(),
        ca_file=reader.file("ca_file"),
        api=api,
        endpoint=reader.one_of("endpoint", ENDPOINTS),
        system=reader.text("system"),
        extra=reader.table("extra"),
    )


def remote_table(service: ServiceConfig) -> ServiceConfig:
    """Return the table of the remote model, as one of the backend `remote`."""
    assert service.remote
    remote = {"backend": "remote", "model": service.remote.model, "engine": "auto"}
    same = {"remote": None, "placement": "local", "preprocess": None, "postprocess": None}
    return service.model_copy(update={**remote, **same, "options": service.remote.options})


class _Reader:
    """Reads options, and names the one that is wrong."""

    def __init__(self, service: ServiceConfig) -> None:
        self._options: Mapping[str, Any] = service.options
        self._folder = service.folder

    def one_of(self, name: str, known: tuple[str, ...]) -> str:
        value = self._options.get(name, known[0])
        if not isinstance(value, str) or value not in known:
            raise OptionError(name, f"unknown {name} {shown(value)} {suggest(str(value), known)}")
        return value

    def only_with(self, openai: bool, names: tuple[str, ...]) -> None:
        for name in () if openai else names:
            if name in self._options:
                raise OptionError(name, "is an option of api = 'openai'")

    def text(self, name: str) -> str:
        value = self._options.get(name, "")
        if not isinstance(value, str):
            raise OptionError(name, f"{shown(value)} is no text")
        return value

    def table(self, name: str) -> Mapping[str, Any]:
        value = self._options.get(name, {})
        if not isinstance(value, Mapping):
            raise OptionError(name, f"{shown(value)} is no table")
        return value

    def urls(self) -> tuple[str, ...]:
        value = self._options.get("url")
        urls = [value] if isinstance(value, str) else value
        if not urls or not isinstance(urls, list):
            raise OptionError("url", "missing: the address of a server, or a list of them")
        for url in urls:
            if not isinstance(url, str) or not url.startswith(SCHEMES):
                text = f"{shown(url)} begins with none of {', '.join(SCHEMES)}"
                raise OptionError("url", text)
        return tuple(url.rstrip("/") for url in urls)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self._options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionError(name, f"{shown(value)} is no number")
        if not least <= value <= most:
            raise OptionError(name, f"{value:g} is not in {least:g} to {most:g}")
        return float(value)

    def file(self, name: str) -> str | None:
        value = self._options.get(name)
        if value is None:
            return None
        path = self._folder / Path(str(value)).expanduser()
        if not path.is_file():
            raise OptionError(name, f"{path}: no such file")
        return str(path)

    def token(self) -> str:
        """Read the token from a file that only its owner can read, or from a variable."""
        variable = self._options.get("token_variable")
        if variable is not None:
            if not (value := os.environ.get(str(variable), "").strip()):
                raise OptionError("token_variable", f"the variable {variable} is not set")
            return value
        if (path := self.file("token_file")) is None:
            return ""
        if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            text = f"{path} can be read by others than its owner: chmod 600 {path}"
            raise OptionError("token_file", text)
        return Path(path).read_text().strip()
