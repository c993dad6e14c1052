"""What the backend needs of a protocol: requests of a service in it, and answers read from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mpiserve.config import ServiceConfig
from mpiserve.errors import Code, ModelError

Arrays = tuple[np.ndarray, ...]


class NotAskedError(ModelError):
    """No server was asked: each has failed a moment ago, or nobody waits any more."""


class Message(NamedTuple):
    """One HTTP request.

    Attributes:
        path: Its path.
        headers: Its headers, beside those that every request has.
        body: Its body; None for a GET.
    """

    path: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None


class Reply(NamedTuple):
    """The answer to a message.

    Attributes:
        headers: Its headers.
        body: Its body.
    """

    headers: Mapping[str, str]
    body: bytes


Ask = Callable[[Message], tuple[int, bytes]]  # status and body of a server's answer


class Api(ABC):
    """A protocol, for one service.

    Args:
        service: The table of the service.

    Attributes:
        ready_path: What a server is asked to find out whether it is ready.
        ready: The statuses that say yes.
    """

    ready_path = ""
    ready: tuple[int, ...] = (200,)

    def __init__(self, service: ServiceConfig) -> None:
        self.service = service

    @abstractmethod
    def compare(self, url: str, ask: Ask) -> None:
        """Compare the model of a ready server with the signature.

        Raises:
            ModelError: If it has none, or another one.
            WireError: If it does not speak the protocol.
        """

    @abstractmethod
    def messages(self, inputs: Arrays) -> list[Message]:
        """Make the messages of a request; they may be under way at the same time."""

    @abstractmethod
    def results(self, replies: Sequence[Reply]) -> Mapping[str, np.ndarray]:
        """Make the outputs, by name, of the replies to all messages of a request.

        Raises:
            WireError: If they are not what the protocol allows.
        """

    def refuse(self, text: str) -> ModelError:
        """Make the error of a service that the protocol cannot have."""
        return ModelError(Code.EMODEL, text)
