"""The log of a rank: its lines, and what the user's code raises."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from mpiserve.failure import cause_of, check_interrupt, describe, trace_of

logger = logging.getLogger("mpiserve")

MANY = 100  # texts of failures that are logged
LEVELS = ("debug", "info", "warning", "error")


class Lines(logging.Formatter):
    """Begins a line with time, level and rank."""

    def __init__(self, rank: int) -> None:
        text = f"%(asctime)s %(levelname)s mpiserve rank {rank}: %(message)s"
        super().__init__(text, "%Y-%m-%d %H:%M:%S")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Write a traceback out, whatever the exception does."""
        return trace_of(ei[1], ei[2])


class Stderr(logging.StreamHandler[Any]):
    """Writes to stderr as long as the user has not said where the log goes, at any time."""

    def filter(self, record: logging.LogRecord) -> Any:
        """Leave a record to handlers of the user's, if there are any."""
        others = [handler for handler in logger.handlers if handler is not self]
        if logger.propagate:
            others += logging.getLogger().handlers
        if any(not isinstance(handler, logging.NullHandler) for handler in others):
            return False
        return super().filter(record)


def start_logging(rank: int) -> None:
    """Send the log to stderr, or where the user wants it, from the level MPISERVE_LOG on."""
    if not any(isinstance(handler, Stderr) for handler in logger.handlers):
        logger.addHandler(Stderr())
    for handler in logger.handlers:
        if isinstance(handler, Stderr):
            handler.setFormatter(Lines(rank))
    wanted = os.environ.get("MPISERVE_LOG", "")
    if wanted.lower() in LEVELS:
        logger.setLevel(wanted.upper())
    elif not logger.level:
        logger.setLevel(logging.INFO)
    if wanted and wanted.lower() not in LEVELS:
        logger.warning("MPISERVE_LOG is %r: it is one of %s", wanted, ", ".join(LEVELS))


class Failures:
    """Logs what the user's code raises.

    Args:
        name: Tells of what.
    """

    def __init__(self, name: Callable[[], str]) -> None:
        self._name = name
        self._seen: set[str] = set()

    def log(self, what: str, error: BaseException) -> None:
        """Log with a traceback, unless the error is our own: its text says all."""
        line = f"{self._name()} {what}: {describe(error)}"
        try:
            logger.error("%s", line, exc_info=cause_of(error))
        except BaseException:  # of a handler of the user's, which asks the exception
            check_interrupt()
            logger.error("%s", line)

    def once(self, error: BaseException) -> str:
        """Log a failure of a batch, each once: one at every step would fill the disk."""
        text = describe(error)
        if text in self._seen or len(self._seen) > MANY:
            return text
        self._seen.add(text)
        if len(self._seen) <= MANY:
            self.log("failed on a batch", error)
        else:
            logger.error("%s failed in %d ways: no more of them are logged", self._name(), MANY)
        return text

    def attempt(self, what: str, call: Callable[..., Any], *args: Any) -> None:
        """Call what keeps nobody from an answer if it raises."""
        try:
            call(*args)
        except BaseException as error:
            check_interrupt()
            self.log(what, error)
