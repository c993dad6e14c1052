"""Requests that wait for one service: merged, so that many clients make one batch."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpiserve.errors import Code, DeadlineError, Error, QueueFullError
from mpiserve.gateway.services import Service
from mpiserve.wire.open_inference_server import cut, is_like

SLOTS = 4  # requests under way, as many as a rank can have at a head
# A request that fails in this way says nothing of those that were merged with it.
OF_ONE = (Code.EMODEL, Code.EARG, Code.EROWS, Code.ESHAPE, Code.EDEADLINE, Code.ENOMEM)

Arrays = Sequence[np.ndarray]
Send = Callable[[Service, Arrays, int, float | None], Awaitable[tuple[list[np.ndarray], Any]]]


@dataclass(order=True)
class Waiting:
    """A request of a client; the first fields are the order in which they are sent."""

    rank: tuple[int, float, int]
    arrays: Arrays = field(compare=False)
    rows: int = field(compare=False)
    priority: int = field(compare=False)
    until: float = field(compare=False)  # of the loop's clock
    answer: asyncio.Future[Any] = field(compare=False)


class Queue:
    """The requests for one service.

    Args:
        service: The service.
        send: Sends a request to the rank, and returns the outputs and the statistics.
        most: The most requests that wait.

    Attributes:
        sent: Requests that were sent to the rank.
        merged: Requests of clients of which several were sent as one.
    """

    def __init__(self, service: Service, send: Send, most: int) -> None:
        self.service = service
        self._send = send
        self._most = most
        self._waiting: list[Waiting] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._number = 0
        self.sent = self.merged = 0

    @property
    def waiting(self) -> int:
        """The requests that wait."""
        return len(self._waiting)

    async def ask(self, arrays: Arrays, priority: int, seconds: float) -> tuple[Arrays, Any]:
        """Have the service answer a request.

        Args:
            arrays: Its inputs.
            priority: Of the request.
            seconds: In which it must have ended.

        Returns:
            The outputs, and the statistics of the request that they were part of.

        Raises:
            QueueFullError: If too many wait.
            DeadlineError: If the time is over.
            Error: What the service says.
        """
        if len(self._waiting) >= self._most:
            raise QueueFullError(Code.EFULL, f"{self._most} requests wait for the service")
        loop = asyncio.get_running_loop()
        until, self._number = loop.time() + seconds, self._number + 1
        rows = arrays[0].shape[0] if self.service.rows != "none" and arrays else 1
        rank = (-priority, until, self._number)
        mine = Waiting(rank, arrays, rows, priority, until, loop.create_future())
        insort(self._waiting, mine)
        self._send_some()
        try:
            async with asyncio.timeout_at(until):
                return await mine.answer
        except Error:  # those of a time that is over are a TimeoutError, too
            raise
        except TimeoutError:
            raise DeadlineError(Code.EDEADLINE, f"no answer within {seconds:g} s") from None
        finally:
            with suppress(ValueError):
                self._waiting.remove(mine)

    def _send_some(self) -> None:
        while self._waiting and len(self._under_way) < SLOTS:
            task = asyncio.ensure_future(self._run(self._take()))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._send_some()

    def _take(self) -> list[Waiting]:
        """Take the first request, and those that may be merged with it."""
        first = self._waiting.pop(0)
        taken, rows = [first], first.rows
        if not self.service.merges or not first.rows:
            return taken
        for other in list(self._waiting):
            if rows == self.service.max_batch_rows or other.priority != first.priority:
                break
            fits = rows + other.rows <= self.service.max_batch_rows and other.rows
            if fits and is_like(first.arrays, other.arrays):
                self._waiting.remove(other)
                taken.append(other)
                rows += other.rows
        return taken

    async def _run(self, taken: list[Waiting]) -> None:
        """Send requests as one; if that fails, each by itself."""
        try:
            outputs, stats = await self._ask_rank(taken)
        except Error as error:
            if len(taken) == 1 or error.code not in OF_ONE:
                _fail(taken, error)
                return
            for each in taken:
                await self._run([each])
            return
        except asyncio.CancelledError:
            _fail(taken, Error(Code.ECLOSED, "the gateway ends"))
            raise
        _deliver(taken, outputs, stats)

    async def _ask_rank(self, taken: list[Waiting]) -> tuple[list[np.ndarray], Any]:
        self.sent += 1
        first = taken[0]
        left = max(each.until for each in taken) - asyncio.get_running_loop().time()
        arrays = first.arrays
        if len(taken) > 1:
            self.merged += len(taken)
            arrays = [
                np.concatenate(parts) for parts in zip(*(w.arrays for w in taken), strict=True)
            ]
        return await self._send(self.service, arrays, first.priority, left)


def _deliver(taken: list[Waiting], outputs: list[np.ndarray], stats: Any) -> None:
    if len(taken) == 1:
        _set(taken[0].answer, (outputs, stats))
        return
    rows = [each.rows for each in taken]
    parts = zip(*(cut(array, rows) for array in outputs), strict=True)
    for each, mine in zip(taken, parts, strict=True):
        _set(each.answer, (mine, stats))


def _set(answer: asyncio.Future[Any], value: Any) -> None:
    if not answer.done():  # its client may have gone
        answer.set_result(value)


def _fail(taken: list[Waiting], error: Error) -> None:
    for each in taken:
        if not each.answer.done():
            each.answer.set_exception(error)
