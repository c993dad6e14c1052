"""Callbacks of requests: a thread looks for the ends of those that somebody waits for elsewhere.

The library tells nobody that a request has ended: somebody has to look. So requests that have a
callback, or that a coroutine or `concurrent.futures` waits for, are watched here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mpiserve.errors import Code, Error

if TYPE_CHECKING:
    from mpiserve._lib.core import Request

FIRST_NAP, LONGEST_NAP = 20e-6, 500e-6  # seconds between two looks
PENDING, FINISHED = "PENDING", "FINISHED"  # states, in the words of concurrent.futures

logger = logging.getLogger("mpiserve")


class Watch:
    """What `concurrent.futures` keeps of a future, by the names that it has there.

    Attributes:
        condition: Its lock is held while the others change.
        waiters: Of `concurrent.futures.wait` and `as_completed`.
        state: PENDING or FINISHED.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._callbacks: list[Callable[[Request], object]] = []
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.state = PENDING

    def add(self, function: Callable[[Request], object]) -> None:
        """Call a function when the request has ended; at once if it has."""
        with self.condition:
            if self.state == PENDING:
                self._callbacks.append(function)
                return
        self._call(function)

    def look(self) -> bool:
        """Return whether the request has ended; the first time, tell all who wait."""
        try:
            ended = self._request.done()
        except Error:  # such as a closed session: `result` raises it too
            ended = True
        if ended:
            self._finish()
        return ended

    def _finish(self) -> None:
        with self.condition:
            self.state = FINISHED
            for waiter in self.waiters:
                waiter.add_result(self._request)
            self.condition.notify_all()
        for function in self._callbacks:
            self._call(function)
        self._callbacks.clear()

    def _call(self, function: Callable[[Request], object]) -> None:
        try:
            function(self._request)
        except Exception:
            logger.exception("a callback of %r failed", self._request)


class _Watcher:
    """The thread, which lives as long as there is something to watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: list[Watch] = []
        self._lives = False

    def add(self, watch: Watch) -> None:
        with self._lock:
            self._new.append(watch)
            if not self._lives:
                self._lives = True
                threading.Thread(target=self._live, name="mpiserve-watch", daemon=True).start()

    def _live(self) -> None:
        watched: list[Watch] = []
        nap = FIRST_NAP
        while watched := self._with_new(watched):
            left = [watch for watch in watched if not watch.look()]
            nap = FIRST_NAP if len(left) < len(watched) else min(2 * nap, LONGEST_NAP)
            watched = left
            time.sleep(nap)

    def _with_new(self, watched: list[Watch]) -> list[Watch]:
        with self._lock:
            watched, self._new = watched + self._new, []
            self._lives = bool(watched)
            return watched


_watcher = _Watcher()


def watch(request: Request) -> Watch:
    """Begin to watch a request.

    Raises:
        Error: With code ETHREAD, if MPI allows no second thread.
    """
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        text = "another thread looks for the end of this request, and MPI was started for one"
        raise Error(Code.ETHREAD, f"{text}: import mpiserve before mpi4py.MPI")
    made = Watch(request)
    if not made.look():
        _watcher.add(made)
    return made


def awaited(request: Request) -> Generator[Any, None, Any]:
    """Wait in a coroutine. If that is cancelled, so is the request."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell(_request: Request) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end)

    request.add_done_callback(tell)
    try:
        yield from ended
    except asyncio.CancelledError:
        request.cancel()
        raise
    return request.result()
