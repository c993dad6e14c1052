"""Tokens of many clients as they come: those of all streams of a service by one request a step.

A stream takes no slot of the gateway's lane while it waits: a request opens all streams that have
come meanwhile, and another one reads all that are open. Each ends with the next token of any of
them. A request for each stream would keep the four slots of the lane, and the others would wait.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from mpiserve.backends.language.streams import ENDED, ENDS, NOTHING_NEW, OPENS, READS
from mpiserve.errors import Code, Error, QueueFullError
from mpiserve.gateway.logprobs import NewTokens
from mpiserve.gateway.merging import OF_ONE, Arrays
from mpiserve.gateway.services import Service

GATHER_S = 0.001  # in which clients that come together are opened by one request
OPENING = 2  # requests that open at the same time: another one is read, and a slot is left

Send = Callable[[Service, Arrays, int, float | None], Awaitable[tuple[list[np.ndarray], Any]]]
News = NewTokens | Error | None  # tokens, why there are no more, or the end


class _Stream:
    """A stream of one client.

    Attributes:
        number: Its number at the model.
        row: Its inputs.
        news: What the model says.
        left: Whether the client has gone.
    """

    def __init__(self, number: int, row: dict[str, np.ndarray]) -> None:
        self.number, self.row = number, row
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self.left = False


class TokenStreams:
    """The streams of one service, which has an input `stream`.

    Args:
        service: The service.
        send: Sends a request to the rank, and returns the outputs and the statistics.
        most: The most streams that wait.

    Attributes:
        sent: Requests that were sent to the rank.
    """

    def __init__(self, service: Service, send: Send, most: int) -> None:
        self._service = service
        self._send = send
        self._most = most
        # The model may still have streams of a process before this one, until it drops them.
        self._numbers = itertools.count(time.time_ns())
        self._waiting: list[_Stream] = []
        self._open: list[_Stream] = []  # which no request reads at the moment
        self._ends: list[_Stream] = []  # which the model must end
        self._opened = 0  # by the model: the number in all requests and lists but `_waiting`
        self._gathers = False  # a request waits a moment for streams that it opens too
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.sent = 0

    async def tokens(self, row: dict[str, np.ndarray]) -> AsyncGenerator[NewTokens, None]:
        """Yield the new tokens of a sequence as they come. Closing the iterator ends it.

        Args:
            row: The inputs, a row of each; its stream is set here.

        Raises:
            QueueFullError: If too many wait.
            Error: What the service says.
        """
        if len(self._waiting) >= self._most:
            raise QueueFullError(Code.EFULL, f"{self._most} requests wait for the service")
        stream = _Stream(next(self._numbers), row)
        self._waiting.append(stream)
        self._go_on()
        ended = False
        try:
            while not ended:
                news = await stream.news.get()
                if isinstance(news, Error):
                    ended = True
                    raise news
                if news is None:
                    ended = True
                else:
                    yield news
        finally:
            if not ended:
                self._leave(stream)

    def _leave(self, stream: _Stream) -> None:
        """End a stream that nobody reads any more; one that is being read ends after that."""
        stream.left = True
        with suppress(ValueError):
            self._waiting.remove(stream)
        if stream in self._open:
            self._open.remove(stream)
            self._ends.append(stream)
        self._go_on()

    # ---- one request that reads is under way, and at most OPENING that open

    def _go_on(self) -> None:
        if self._waiting and self._opened < self._service.max_batch_rows and not self._gathers:
            begins = (self._begin(f"open {turn}", self._open_some) for turn in range(OPENING))
            self._gathers = any(begins)
        if self._open or self._ends:
            self._begin("read", self._read)

    def _begin(self, what: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Begin a request, if none of this kind is under way."""
        if what in self._tasks:
            return False
        self._tasks[what] = asyncio.ensure_future(self._run(what, work))
        return True

    async def _run(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        finally:
            del self._tasks[what]
        self._go_on()

    async def _open_some(self) -> None:
        try:
            await asyncio.sleep(GATHER_S)
        finally:
            self._gathers = False
        room = self._service.max_batch_rows - self._opened
        taken, self._waiting = self._waiting[:room], self._waiting[room:]
        self._opened += len(taken)
        if taken:
            await self._ask([(stream, OPENS) for stream in taken])

    async def _read(self) -> None:
        reads, self._open = self._open, []
        ends, self._ends = self._ends, []
        await self._ask([(s, READS) for s in reads] + [(s, ENDS) for s in ends])

    async def _ask(self, rows: Sequence[tuple[_Stream, int]]) -> None:
        """Send a request for some streams; if it opens them and fails, each by itself."""
        try:
            outputs, lengths = await self._answer(rows)
        except Error as error:
            opens = all(what == OPENS for _, what in rows)
            if len(rows) > 1 and opens and error.code in OF_ONE:
                for row in rows:
                    await self._ask([row])
                return
            for stream, _ in rows:
                self._close(stream, error)
            return
        alone = []
        for i, ((stream, _), length) in enumerate(zip(rows, lengths, strict=True)):
            if length > 0:
                # A copy: what a slow client has not read yet keeps no other's answers.
                stream.news.put_nowait({n: y[i, :length].copy() for n, y in outputs.items()})
            if length > 0 or length == NOTHING_NEW:
                (self._ends if stream.left else self._open).append(stream)
            elif length == ENDED:
                self._close(stream, None)
            else:
                alone.append(stream)
        for stream in alone:  # it has failed, and says why when it is read alone
            await self._ask([(stream, READS)])

    async def _answer(self, rows: Sequence[tuple[_Stream, int]]) -> tuple[NewTokens, list[int]]:
        self.sent += 1
        outputs, _ = await self._send(self._service, self._arrays(rows), 0, None)
        named = {t.name: y for t, y in zip(self._service.outputs, outputs, strict=True)}
        return named, named.pop("lengths").tolist()

    def _arrays(self, rows: Sequence[tuple[_Stream, int]]) -> Arrays:
        for stream, what in rows:
            stream.row["stream"] = np.array([[stream.number, what]], np.int64)
        return [
            np.concatenate([stream.row[tensor.name] for stream, _ in rows])
            for tensor in self._service.inputs
        ]

    def _close(self, stream: _Stream, last: Error | None) -> None:
        self._opened -= 1
        stream.news.put_nowait(last)
