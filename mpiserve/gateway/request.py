"""A request outside of the job: also a future, for `concurrent.futures` and `asyncio`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from mpiserve._lib.waiting import awaited
from mpiserve.errors import CancelledError, Code, Error, RequestTimeout

Parts = Sequence[Any]


class RemoteRequest(Future[Any]):
    """One request under way, with the attributes and calls of `Request` inside.

    It has no `stats` and no `trusted`. Callbacks are called by the thread that ends the request:
    one of the session's, or the one that cancels it or closes the session.

    Args:
        name: Of the service.
        join: Makes the result of the answers to the pieces. Nothing calls it after `cancel`.
    """

    def __init__(self, name: str, join: Callable[[Parts], Any]) -> None:
        super().__init__()
        self._name = name
        self._join = join
        self._pieces: list[Future[Any]] = []
        self._ends = False  # a thread ends it, or has

    def wait_for(self, pieces: list[Future[Any]]) -> None:
        """End when all pieces have; for this room."""
        self._pieces = pieces
        for piece in pieces:
            piece.add_done_callback(self._look)

    def fail(self, error: Error) -> None:
        """End with an error, if it has not ended; for this room."""
        if self._claim():
            self._drop()
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result; a second call returns it again.

        Args:
            timeout: In seconds; None waits without end. After RequestTimeout the request goes on.
        """
        if (error := self.exception(timeout)) is None:
            return super().result()
        try:
            raise error
        finally:
            error = None  # which refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end, and return the error that `result` raises, or None.

        Raises:
            RequestTimeout: After so many seconds; the request goes on.
            CancelledError: If the request was cancelled.
        """
        try:
            return super().exception(timeout)  # an error of the request is returned, not raised
        except FutureCancelled:
            raise CancelledError(Code.ECANCELLED, "the request was cancelled") from None
        except TimeoutError:
            text = f"service '{self._name}': no reply within {timeout} s"
            raise RequestTimeout(Code.ETIMEOUT, text) from None

    def cancel(self) -> bool:
        """End the request without a result; nothing happens if it has ended."""
        if self._claim():
            self._drop()
            super().cancel()
            self.set_running_or_notify_cancel()  # wakes `concurrent.futures.wait`
        else:
            with suppress(FutureCancelled):
                super().exception()  # another thread may be about to write the outputs
        return self.cancelled()

    def __await__(self) -> Generator[Any, None, Any]:
        return awaited(self)

    def _claim(self) -> bool:
        """Whether the caller is the first that ends the request."""
        with self._condition:
            first, self._ends = not self._ends, True
        return first

    def _drop(self) -> None:
        for piece in self._pieces:
            piece.cancel()

    def _look(self, _piece: Future[Any]) -> None:
        if all(piece.done() for piece in self._pieces) and self._claim():
            self._end()

    def _end(self) -> None:
        try:
            result = self._join([piece.result() for piece in self._pieces])
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)
