"""An executor of `concurrent.futures` whose tasks are requests to a service."""

from __future__ import annotations

# Its own function for the end of a program is registered first, and so is called last.
import concurrent.futures.thread  # noqa: F401
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any

from mpiserve.errors import ArgumentError, Code, Error

IN_FLIGHT = 64

logger = logging.getLogger("mpiserve")


class ServiceExecutor(Executor):
    """Has a service answer, for programs that want an executor and futures.

    A task is a request: `submit(x)` in place of `submit(function, x)`. A future ends with the
    result of the request, or with its error; where the session is closed, with one of code ESTATE.
    Callbacks of futures are called by the executor's thread, one after the other, and must not wait
    for other futures of it. A context manager, as other executors are. Threads may use it at the
    same time, a forked child may not.

    Args:
        service: Of a simulation rank's session, of `mpiserve.local` or of `mpiserve.connect`.
        in_flight: The most requests under way. The others wait, and can be cancelled.

    Raises:
        ArgumentError: If that is no service, or no number from 1 on.
        Error: With code ETHREAD, if MPI does not allow that another thread calls it: in a job it
            has to be MULTIPLE, in a session of one process SERIALIZED.
    """

    def __init__(self, service: Any, *, in_flight: int = IN_FLIGHT) -> None:
        if not hasattr(service, "check_threads"):
            text = f"an executor needs what session.service(...) returns, got {service!r:.60}"
            raise ArgumentError(Code.EARG, text)
        if not isinstance(in_flight, int) or in_flight < 1:
            text = f"in_flight is {in_flight!r:.60}: it must be a whole number from 1 on"
            raise ArgumentError(Code.EARG, text)
        service.check_threads()
        self._line = _Line(service, in_flight)
        weakref.finalize(self, self._line.end).atexit = False

    def submit(self, /, *arrays: Any, **options: Any) -> Future[Any]:
        """Begin a request, or have it wait, and return its future. Does not block.

        Args:
            *arrays: The inputs, as of `Service.submit`. They must not change until the future has
                ended.
            **options: Of `Service.submit`: `out`, `deadline`, which counts from when the request
                begins, `priority`, and inputs by name.

        Returns:
            The future, of an array or a named tuple of arrays. `cancel` succeeds while it waits.
            Arguments that do not fit are an error of the future.

        Raises:
            RuntimeError: If the executor is shut down.
            Error: In a forked child, with code ESTATE.
        """
        return self._line.add(arrays, options)

    def map(  # type: ignore[override]
        self,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Return the results of a request for each element, or each tuple of elements, in order.

        Args:
            *iterables: One per input, in the order of the signature.
            timeout: In seconds from now, for all results; None waits without end.
            chunksize: Has no meaning here.
            buffersize: How many requests may be submitted whose results were not taken yet. None
                submits all at once.
            **options: As of `submit`.

        Raises:
            TimeoutError: By the iterator, when the time is over.
            ArgumentError: If `buffersize` is less than 1.
        """
        if buffersize is not None and buffersize < 1:
            text = f"buffersize is {buffersize!r:.60}: it must be from 1 on, or None"
            raise ArgumentError(Code.EARG, text)
        end = None if timeout is None else monotonic() + timeout
        begun = (self.submit(*arrays, **options) for arrays in zip(*iterables, strict=False))
        return _in_order(begun, deque(islice(begun, buffersize)), end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more requests.

        Args:
            wait: Whether to return only when all futures have ended, and their callbacks.
            cancel_futures: Whether to cancel those that wait. Requests under way go on.
        """
        self._line.end(cancel_futures)
        if wait:
            self._line.join()


def _in_order(
    begun: Iterator[Future[Any]], ahead: deque[Future[Any]], end: float | None
) -> Iterator[Any]:
    """Yield results, and begin one more request for each that was taken."""
    try:
        while ahead:
            result = ahead[0].result(None if end is None else end - monotonic())
            ahead.popleft()
            ahead.extend(islice(begun, 1))
            yield result
    finally:
        for future in ahead:
            future.cancel()


class _Line:
    """The futures of an executor, and the thread that begins and ends their requests.

    It does not know its executor, so that one which nobody holds any more ends.
    """

    def __init__(self, service: Any, in_flight: int) -> None:
        self._service = service
        self._most = in_flight
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Future[Any], tuple[Any, ...], dict[str, Any]]] = deque()
        self._ended: deque[tuple[Future[Any], Any]] = deque()
        self._under_way = 0  # only the thread changes it
        self._over = False
        self._thread = threading.Thread(target=self._work, name="mpiserve-executor", daemon=True)
        _lines.add(self)
        self._thread.start()

    def add(self, arrays: tuple[Any, ...], options: dict[str, Any]) -> Future[Any]:
        if self._is_forked():
            text = "this process was forked from the one that made the executor, which alone"
            raise Error(Code.ESTATE, f"{text} may use it")
        future: Future[Any] = Future()
        with self._changed:
            if self._over:
                raise RuntimeError("the executor is shut down")
            self._waiting.append((future, arrays, options))
            self._changed.notify()
        return future

    def end(self, cancel: bool = False) -> None:
        if self._is_forked():
            return
        with self._changed:
            self._over = True
            dropped = list(self._waiting) if cancel else []
            if cancel:
                self._waiting.clear()
            self._changed.notify()
        for future, *_ in dropped:
            future.cancel()
            # Without this `concurrent.futures.wait` would sleep on.
            future.set_running_or_notify_cancel()

    def join(self) -> None:
        if not self._is_forked():
            self._thread.join()

    def _is_forked(self) -> bool:
        """Whether the thread is in another process, and perhaps had the lock."""
        return os.getpid() != self._process

    def _work(self) -> None:
        while step := self._next():
            try:
                step()
            except BaseException:  # a task that was cancelled, say, must not end the others
                logger.exception("a callback of a future failed")
            del step  # it holds arrays
        _lines.discard(self)

    def _next(self) -> Callable[[], None] | None:
        """Wait for what is to be done next; None: nothing will be."""
        with self._changed:
            while True:
                if self._ended:
                    return partial(self._settle, *self._ended.popleft())
                if self._waiting and self._under_way < self._most:
                    return partial(self._begin, *self._waiting.popleft())
                if self._over and not self._waiting and not self._under_way:
                    return None
                self._changed.wait()

    def _begin(self, future: Future[Any], arrays: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            request = self._service.submit(*arrays, **options)
            request.add_done_callback(partial(self._note, future))
        except BaseException as error:
            future.set_exception(error)
        else:
            self._under_way += 1

    def _note(self, future: Future[Any], request: Any) -> None:
        """Any thread may call this, also one that closes the session: it must not do more."""
        with self._changed:
            self._ended.append((future, request))
            self._changed.notify()

    def _settle(self, future: Future[Any], request: Any) -> None:
        self._under_way -= 1
        try:
            result = request.result(0)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


_lines: set[_Line] = set()


def _finish() -> None:
    """Wait for the futures of a program that ends without a shutdown, as other executors do."""
    for line in list(_lines):
        line.end()
    for line in list(_lines):
        line.join()


# Before `concurrent.futures` ends its threads, which `connect` needs, and sessions are closed.
threading._register_atexit(_finish)  # type: ignore[attr-defined]
