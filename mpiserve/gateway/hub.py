"""The child's side of the link to the rank: sends requests, and knows the services."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpiserve.errors import Code, Error, QueueFullError, from_code
from mpiserve.gateway.language import Language
from mpiserve.gateway.link import (
    ANSWER,
    CHANGE,
    DRAIN,
    HELLO,
    INFER,
    PING,
    PONG,
    READY,
    STATES,
    Link,
    LinkError,
    split,
)
from mpiserve.gateway.merging import Arrays, Queue
from mpiserve.gateway.services import Service, read_table
from mpiserve.gateway.token_streams import TokenStreams

MOST_HELD = 2 << 30  # bytes of bodies of requests under way
MOST_BYTES, MOST_JSON = 1 << 40, 1 << 30  # of a message: the rank is trusted


class Memory:
    """Counts what requests under way hold, so that many large ones are refused, not swapped.

    Args:
        most: How many bytes they may hold together; a single one may hold more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold so many bytes.

        Raises:
            QueueFullError: If others hold too many.
        """
        if self._held and self._held + size > self._most:
            raise QueueFullError(Code.EFULL, f"requests under way have {self._held} bytes")
        self._held += size
        try:
            yield
        finally:
            self._held -= size


class Hub:
    """Sends requests to the rank.

    Args:
        end: The socket to the rank.
        most_waiting: The most requests that wait for a service.
        ended: Called when the rank has gone.

    Attributes:
        services: By name.
        tokens: Those of clients, as `tokens.told` writes them.
        queues: By name.
        languages: What is known of services that may be language models, by name.
        streams: Of those of them whose tokens can be read as they come, by name.
        states: The best state of a replica, by the name of each service of the configuration.
        reasons: Why a service could not load, by name.
        memory: Of the bodies of requests under way.
        drains: Whether the job ends.
        known: Set when the rank has told what there is, or has gone.
    """

    def __init__(self, end: socket.socket, most_waiting: int, ended: Callable[[], None]) -> None:
        self._link = Link(end, MOST_BYTES, MOST_JSON)
        self._most_waiting = most_waiting
        self._ended = ended
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self.services: dict[str, Service] = {}
        self.tokens: list[list[Any]] = []
        self.queues: dict[str, Queue] = {}
        self.languages: dict[str, Language] = {}
        self.streams: dict[str, TokenStreams] = {}
        self.states: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.memory = Memory(MOST_HELD)
        self.drains = False
        self.known = asyncio.Event()

    def start(self) -> None:
        """Listen to the rank from now on."""
        asyncio.get_running_loop().add_reader(self._link.socket, self._receive)

    def say_ready(self) -> None:
        """Tell the rank that clients can come."""
        self._send({"m": READY})

    async def infer(
        self, service: Service, arrays: Arrays, priority: int, seconds: float | None
    ) -> tuple[list[np.ndarray], Any]:
        """Have a service answer one request.

        Raises:
            Error: What the service says.
        """
        table = {
            "m": INFER,
            "s": service.number,
            "shapes": [array.shape for array in arrays],
            "p": priority,
            "d": seconds,
        }
        answer, data = await self._ask(table, [np.ascontiguousarray(array) for array in arrays])
        return split(data, answer["shapes"], service.dtypes), answer["stats"]

    def sent(self, name: str) -> int:
        """Return how many requests for a service were sent to the rank."""
        return self.queues[name].sent + (self.streams[name].sent if name in self.streams else 0)

    async def change(self, what: str, name: str, version: str) -> None:
        """Load or unload the model of a service.

        Raises:
            Error: What the service says.
        """
        await self._ask({"m": CHANGE, "what": what, "name": name, "version": version}, [])

    async def _ask(self, table: dict[str, Any], arrays: list[np.ndarray]) -> Any:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, **table}, arrays)
            return await self._answers[number]
        finally:
            self._answers.pop(number, None)

    def _send(self, table: dict[str, Any], arrays: Any = ()) -> None:
        try:
            self._link.send(table, arrays)
        except LinkError:
            self._lose()
        if self._link.is_full:
            asyncio.get_running_loop().add_writer(self._link.socket, self._flush)

    def _flush(self) -> None:
        try:
            self._link.flush()
        except LinkError:
            self._lose()
        if not self._link.is_full:
            asyncio.get_running_loop().remove_writer(self._link.socket)

    def _receive(self) -> None:
        try:
            for table, data in self._link.receive():
                self._obey(table, data)
        except LinkError:
            self._lose()

    def _obey(self, table: dict[str, Any], data: memoryview) -> None:
        if table["m"] == ANSWER:
            self._take(table, data)
        elif table["m"] == STATES:
            self.states, self.reasons = table["states"], table["reasons"]
        elif table["m"] == PING:
            self._send({"m": PONG})
        elif table["m"] == HELLO:
            self._know(table)
            self.known.set()
        elif table["m"] == DRAIN:
            self.drains = True
            self._ended()

    def _know(self, table: dict[str, Any]) -> None:
        self.tokens = table["tokens"]
        self.services = {made.name: made for made in map(read_table, table["services"])}
        for name, service in self.services.items():
            self.queues[name] = Queue(service, self.infer, self._most_waiting)
        for name, about in table.get("languages", {}).items():
            language = self.languages[name] = Language(self.services[name], about)
            language.load()
            if language.streams:
                service, most = language.service, self._most_waiting
                self.streams[name] = TokenStreams(service, self.infer, most)

    def _take(self, table: dict[str, Any], data: memoryview) -> None:
        answer = self._answers.get(table["id"])
        if answer is None or answer.done():
            return
        if "code" in table:
            answer.set_exception(from_code(table["code"], table["text"]))
        else:
            answer.set_result((table, data))

    def _lose(self) -> None:
        """The rank has gone: there is nobody to answer for."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._link.socket)
        loop.remove_writer(self._link.socket)
        self.drains = True
        self.known.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Error(Code.ECLOSED, "the job has ended"))
        self._ended()
