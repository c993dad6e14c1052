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
ALONE = "import mpiserve before mpi4py.MPI"
TOGETHER = "set MPIR_CVAR_DEFAULT_THREAD_LEVEL=MPI_THREAD_MULTIPLE for all ranks of the job"
PENDING, FINISHED = "PENDING", "FINISHED"  # states, in the words of concurrent.futures

logger = logging.getLogger("mpiserve")


class Watch:
    """What `concurrent.futures` keeps of a future, by the names that it has there.

    A request keeps its own; so this one keeps no request.

    Attributes:
        condition: Its lock is held while the others change.
        waiters: Of `concurrent.futures.wait` and `as_completed`.
        state: PENDING or FINISHED.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Request], object]] = []
        self._calls = False  # a thread is about to call them
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.state = PENDING

    def add(self, function: Callable[[Request], object], request: Request) -> None:
        """Call a function when the request has ended, after those that were added before."""
        with self.condition:
            self._callbacks.append(function)
            if self.state == PENDING or self._calls:
                return
            self._calls = True
        self._call_all(request)

    def look(self, request: Request) -> bool:
        """Return whether the request has ended; the first time, tell all who wait."""
        try:
            ended = request.done()
        except Exception:  # such as a closed session: `result` raises it too
            ended = True
        if ended:
            self._finish(request)
        return ended

    def _finish(self, request: Request) -> None:
        with self.condition:
            self.state, self._calls = FINISHED, True
            for waiter in self.waiters:
                getattr(waiter, _how(request))(request)
            self.condition.notify_all()
        self._call_all(request)

    def _call_all(self, request: Request) -> None:
        while function := self._next():
            try:
                function(request)
            except BaseException:  # the cancellation of a task, say, is not that of this thread
                logger.exception("a callback of %r failed", request)

    def _next(self) -> Callable[[Request], object] | None:
        with self.condition:
            self._calls = bool(self._callbacks)
            return self._callbacks.pop(0) if self._calls else None


def _how(request: Request) -> str:
    """Return by which method a waiter of `concurrent.futures` hears how a request has ended."""
    try:
        if request.cancelled():
            return "add_cancelled"
        return "add_exception" if request.exception(0) else "add_result"
    except Error:  # a closed session
        return "add_exception"


Watched = tuple[Watch, "Request"]


class _Watcher:
    """The thread, which lives as long as there is something to watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: list[Watched] = []
        self._lives = False

    def add(self, watch: Watch, request: Request) -> None:
        with self._lock:
            self._new.append((watch, request))
            if not self._lives:
                self._lives = True
                threading.Thread(target=self._live, name="mpiserve-watch", daemon=True).start()

    def _live(self) -> None:
        watched: list[Watched] = []
        nap = FIRST_NAP
        while watched := self._with_new(watched):
            left = [(watch, request) for watch, request in watched if not watch.look(request)]
            nap = FIRST_NAP if len(left) < len(watched) else min(2 * nap, LONGEST_NAP)
            watched = left
            time.sleep(nap)

    def _with_new(self, watched: list[Watched]) -> list[Watched]:
        with self._lock:
            watched, self._new = watched + self._new, []
            self._lives = bool(watched)
            return watched


_watcher = _Watcher()


def check_threads(alone: bool) -> None:
    """Refuse to watch where MPI does not allow that a thread of ours calls it.

    The program may be in a call of MPI at the same time, which nobody but MPI itself can order.

    Args:
        alone: Whether the session is of one process, which mostly calls MPI for nothing else.

    Raises:
        Error: With code ETHREAD.
    """
    from mpi4py import MPI

    if MPI.Query_thread() < (MPI.THREAD_SERIALIZED if alone else MPI.THREAD_MULTIPLE):
        text = "another thread looks for the end of this request, and MPI was started for one"
        raise Error(Code.ETHREAD, f"{text}: {ALONE if alone else TOGETHER}")


def watch(made: Watch, request: Request) -> None:
    """Begin to watch a request."""
    if not made.look(request):
        _watcher.add(made, request)


def awaited(request: Any) -> Generator[Any, None, Any]:
    """Wait in a coroutine. If that is cancelled, so is the request, of a job or outside of it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell(_request: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end)

    request.add_done_callback(tell)
    try:
        yield from ended
    except asyncio.CancelledError:
        with suppress(Error):  # a closed session has ended it
            request.cancel()
        raise
    return request.result()
