"""Log long waits, and batches that are too small."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from mpiserve.config.environment import seconds

if TYPE_CHECKING:
    from mpiserve._lib import core

logger = logging.getLogger("mpiserve")

NOTICE = 10.0  # seconds after which a wait is long, if MPISERVE_WAIT_NOTICE is not set
LOOK = 0.25  # seconds between two checks for requests
ALONE = 8  # batches of one request while others wait, before a warning

EARLY = ("rejected", "dropped", "cancelled")  # requests that end before the model runs

OPENING = (
    "has waited %g s for every rank of the world (%d) to come to mpiserve_open. A simulation may "
    "compute before; if it hangs: does it call MPI_Init without mpiserve_open, or use "
    "MPI_COMM_WORLD without libmpiserve_world.so (is LD_PRELOAD set, and its path right)?"
)
PUBLISHING = "is ready, and has waited %g s for the other inference ranks, which may still load"


def limit() -> float:
    """Return the seconds after which a wait is long, as libmpiserve reads the variable."""
    value = seconds("MPISERVE_WAIT_NOTICE", NOTICE)
    return value or math.inf


class Alarm:
    """Calls a function when its body takes long, from a thread, which calls no MPI.

    Args:
        say: The function, called with the seconds that have passed.
        again: Whether to call it again, each time after twice the time.
    """

    def __init__(self, say: Callable[[float], None], *, again: bool = False) -> None:
        self._say = say
        self._again = again
        self._over = threading.Event()

    def __enter__(self) -> Alarm:
        self._begin, self._limit = time.monotonic(), limit()
        if self._limit < threading.TIMEOUT_MAX:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        wait = self._limit
        while not self._over.wait(wait):
            wait = time.monotonic() - self._begin
            self._say(wait)
            if not self._again:
                return


def loading(what: str) -> Alarm:
    """Log that a model is being loaded, and again if it takes long."""
    logger.info("loading %s", what)
    return Alarm(
        lambda seconds: logger.info("still loading %s, for %.0f s", what, seconds), again=True
    )


def opening(ranks: int) -> Alarm:
    """Log that an inference rank waits long for other ranks to open the session."""
    return Alarm(lambda seconds: logger.warning(OPENING, round(seconds, 1), ranks))


def publishing() -> Alarm:
    """Log that an inference rank waits long for others to publish their services."""
    return Alarm(lambda seconds: logger.info(f"this rank {PUBLISHING}", round(seconds, 1)))


class Life:
    """Logs the states of a service on this rank after it was ready first, a line for each.

    Args:
        name: Returns the name of the model.
    """

    def __init__(self, name: Callable[[], str]) -> None:
        self._name = name
        self._state = "ready"
        self._since = time.monotonic()

    def enter(self, state: str) -> None:
        """Note a state; nothing happens if it is the same."""
        if state == self._state:
            return
        now = time.monotonic()
        text = "%s: %s, after %.3f s %s"
        logger.info(text, self._name(), state, now - self._since, self._state)
        self._state, self._since = state, now


class Silence:
    """Logs, once for each reason, what a rank waits for when it receives no requests for long."""

    def __init__(self, lib: core.Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._lib = lib
        self._clock = clock
        self._next = 0.0
        self._said = {0}

    def look(self) -> None:
        """Check what the rank waits for, at most four times a second; call it without a batch."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK
        why, text = self._lib.waiting()
        if why not in self._said:
            self._said.add(why)
            logger.warning("%s", text)


class Losses:
    """Logs which ranks of the world have died, where the launcher lets the others live."""

    def __init__(self, lib: core.Session) -> None:
        self._lib = lib
        self._next = 0.0
        self._known = 0

    def look(self) -> None:
        """Check at most four times a second; call it without a batch."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK
        count, text = self._lib.lost()
        if count > self._known:
            self._known = count
            logger.error("%s has died; the others go on", text)


class Irregular:
    """Logs when rounds of a reproducible service lack ranks: then results depend on time.

    Each line comes after twice as many as the one before, and at the end.

    Args:
        lib: The session handle of this rank.
        service: The index of the service.
    """

    def __init__(self, lib: core.Session, service: int) -> None:
        self._lib = lib
        self._service = service
        self._next, self._said = 0.0, 0

    def look(self) -> None:
        """Check at most four times a second."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK
            self.say(2 * self._said)

    def say(self, more_than: int | None = None) -> None:
        """Log the number, if it is new."""
        count, text = self._lib.irregular(self._service)
        if count > max(self._said, more_than or 0):
            self._said = count
            logger.warning("%s (%d irregular rounds): results depend on time", text, count)


class Crowded:
    """Logs once that requests do not share batches because max_batch_rows is too small.

    Args:
        lib: The session handle of this rank.
        service: The index of the service on it.
        name: The name of the service.
        most: Its max_batch_rows.
    """

    def __init__(self, lib: core.Session, service: int, name: str, most: int) -> None:
        self._lib = lib
        self._service = service
        self._name = name
        self._most = most
        self._next = 0.0
        self._said = False

    def look(self) -> None:
        """Check at most four times a second."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LOOK
            self.say()

    def say(self) -> None:
        """Log it, if it is so and has not been logged."""
        if self._said:
            return
        batches, rows = self._lib.crowded(self._service)
        if batches >= ALONE:
            self._said = True
            logger.warning(
                "service %s: batches hold one request each: max_batch_rows = %d is below the %d "
                "rows of requests that waited together; raise it",
                self._name,
                self._most,
                rows,
            )


def summary(name: str, count: Mapping[str, int]) -> str:
    """Summarize the counters of a rank in one line."""
    requests = f"{name}: {count['requests']} requests, {count['errors']} failed"
    early = [f"{count[key]} {key}" for key in EARLY if count[key]]
    requests += f" ({', '.join(early)})" if early else ""
    if count["cache_lookups"]:
        share = count["cache_hits"] / count["cache_lookups"]
        kept = f"{count['cache_hits']} of {count['cache_lookups']} rows ({share:.0%}) were kept"
        requests += f"; {kept}"
    if not count["batches"]:
        return requests
    rows = (count["rows"] - count["cache_hits"]) / count["batches"]
    asked = (count["requests"] - count["cached_requests"]) / count["batches"]
    return (
        f"{requests}; {count['batches']} batches of {rows:.1f} "
        f"rows and {asked:.1f} requests on average, closed by "
        f"rows {count['closed_by_rows']}, census {count['closed_by_census']}, "
        f"delay {count['closed_by_delay']}"
    )
