"""Write the log of a rank, with the exceptions of the user's code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from mpiserve.failure import cause_of, check_interrupt, describe, trace_of

logger = logging.getLogger("mpiserve")

MANY = 100  # distinct failures that are logged
LEVELS = ("debug", "info", "warning", "error")


class Formatter(logging.Formatter):
    """Begins each record with time, level and rank."""

    def __init__(self, rank: int) -> None:
        text = f"%(asctime)s %(levelname)s mpiserve rank {rank}: %(message)s"
        super().__init__(text, "%Y-%m-%d %H:%M:%S")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Format a traceback, even if the exception's own methods raise."""
        return trace_of(ei[1], ei[2])


class Stderr(logging.StreamHandler[Any]):
    """Writes to stderr until the user adds a handler, which may happen at any time."""

    def filter(self, record: logging.LogRecord) -> Any:
        """Drop a record if a handler of the user's takes it."""
        others = [handler for handler in logger.handlers if handler is not self]
        if logger.propagate:
            others += logging.getLogger().handlers
        if any(not isinstance(handler, logging.NullHandler) for handler in others):
            return False
        return super().filter(record)


def start_logging(rank: int) -> None:
    """Log at the level MPISERVE_LOG, to stderr unless the user has set a handler."""
    if not any(isinstance(handler, Stderr) for handler in logger.handlers):
        logger.addHandler(Stderr())
    for handler in logger.handlers:
        if isinstance(handler, Stderr):
            handler.setFormatter(Formatter(rank))
    wanted = os.environ.get("MPISERVE_LOG", "")
    if wanted.lower() in LEVELS:
        logger.setLevel(wanted.upper())
    elif not logger.level:
        logger.setLevel(logging.INFO)
    if wanted and wanted.lower() not in LEVELS:
        logger.warning("MPISERVE_LOG is %r: set it to one of %s", wanted, ", ".join(LEVELS))


class Failures:
    """Logs exceptions of the user's code.

    Args:
        name: Returns the name of the model, which begins the text.
    """

    def __init__(self, name: Callable[[], str]) -> None:
        self._name = name
        self._seen: set[str] = set()

    def log(self, what: str, error: BaseException) -> None:
        """Log with a traceback, unless mpiserve raised the error: then the text is enough."""
        line = f"{self._name()} {what}: {describe(error)}"
        try:
            logger.error("%s", line, exc_info=cause_of(error))
        except BaseException:  # a handler of the user's calls the exception's own methods
            check_interrupt()
            logger.error("%s", line)

    def once(self, error: BaseException) -> str:
        """Log each distinct failure of a batch once: one at every step would fill the disk."""
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
        """Call a function, and only log an exception: requests must still be answered."""
        try:
            call(*args)
        except BaseException as error:
            check_interrupt()
            self.log(what, error)
