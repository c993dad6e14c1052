"""The circuit breaker of a remote model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mpiserve.failure import describe

logger = logging.getLogger("mpiserve")

CLOSED, OPEN, HALF_OPEN = STATES = ("closed", "open", "half-open")


class Breaker:
    """Keeps requests from a remote model that fails, until it answers again.

    It opens after some failures in a row. After a while the servers are asked whether they are
    ready: then it is half-open, and one request, also answered locally, decides.

    Args:
        failures: How many in a row open it.
        seconds: How long it is open before the servers are asked, and between two questions.

    Attributes:
        state: CLOSED, OPEN or HALF_OPEN.
        opened: How often it has opened.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._limit, self._seconds = failures, seconds
        self._failures, self._ask_at = 0, 0.0
        self.state, self.opened = CLOSED, 0

    def succeed(self) -> bool:
        """Note an answer; return whether that closes it."""
        closes, self.state, self._failures = self.state != CLOSED, CLOSED, 0
        return closes

    def fail(self, now: float) -> bool:
        """Note a failure; return whether that opens it."""
        self._failures += 1
        if self.state == OPEN or (self.state == CLOSED and self._failures < self._limit):
            return False
        self.open(now)
        return True

    def open(self, now: float) -> None:
        """Open it."""
        self.state, self._ask_at = OPEN, now + self._seconds
        self.opened += 1

    def due(self, now: float) -> bool:
        """Whether it is time to ask the servers."""
        return self.state == OPEN and now >= self._ask_at

    def told(self, ready: bool, now: float) -> None:
        """Note what the servers say."""
        self._ask_at = now + self._seconds
        if ready and self.state == OPEN:
            self.state = HALF_OPEN


class Question:
    """Asks the servers whether they are ready, in a thread: one that hangs delays no request.

    Args:
        ask: Returns why no server is ready, or None.
    """

    def __init__(self, ask: Callable[[], str | None]) -> None:
        self._ask = ask
        self._thread: threading.Thread | None = None
        self._answer: str | None = None

    @property
    def open(self) -> bool:
        """Whether it has been asked, and its answer was not taken."""
        return self._thread is not None

    def start(self) -> None:
        """Ask."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def answered(self) -> bool:
        """Whether the answer has come."""
        return self._thread is not None and not self._thread.is_alive()

    def take(self) -> str | None:
        """Return why no server is ready, or None."""
        self._thread = None
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except Exception as error:  # such as another model than this one
            self._answer = describe(error)
