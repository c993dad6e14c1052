"""What the log says by itself: of waits that are long, and of batches that hold too little."""

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

NOTICE = 10.0  # seconds after which a wait is long, if MPISERVE_WAIT_NOTICE does not say
LOOK = 0.25  # seconds between two looks whether nothing comes
ALONE = 8  # batches of one request, with others left waiting
WATCHED = 1000  # batches, until it is clear that they hold what comes

EARLY = ("rejected", "dropped", "cancelled")  # how requests end that the model never sees

OPENING = (
    "has waited %g s for every rank of the world (%d) to come to mpiserve_open. A simulation may "
    "compute before; if it hangs: does it call MPI_Init without mpiserve_open, or use "
    "MPI_COMM_WORLD without libmpiserve_world.so (is LD_PRELOAD set, and its path right)?"
)
PUBLISHING = "is ready, and has waited %g s for the other inference ranks, which may still load"


def limit() -> float:
    """Seconds after which a wait is long; as libmpiserve reads the variable."""
    value = seconds("MPISERVE_WAIT_NOTICE", NOTICE)
    return value or math.inf


class Alarm:
    """Says something when what it encloses takes long, from a thread, which calls no MPI.

    Args:
        say: Called with the seconds that have passed.
        again: Whether to say it again, after twice the time each.
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
    """Say what is loaded, and again now and then while it is."""
    logger.info("loading %s", what)
    return Alarm(
        lambda seconds: logger.info("still loading %s, for %.0f s", what, seconds), again=True
    )


def opening(ranks: int) -> Alarm:
    """Say whom an inference rank waits for that opens a session of so many ranks."""
    return Alarm(lambda seconds: logger.warning(OPENING, round(seconds, 1), ranks))


def publishing() -> Alarm:
    """Say whom an inference rank waits for that announces its services."""
    return Alarm(lambda seconds: logger.info(f"this rank {PUBLISHING}", round(seconds, 1)))


class Silence:
    """Says once of each kind whom a rank waits for that serves, when nothing comes for long."""

    def __init__(self, lib: core.Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._lib = lib
        self._clock = clock
        self._next = 0.0
        self._said = {0}

    def look(self) -> None:
        """Ask the lib, a few times a second at most; when there was no batch."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK
        why, text = self._lib.waiting()
        if why not in self._said:
            self._said.add(why)
            logger.warning("%s", text)


class Alone:
    """Says once that requests do not share batches because these hold too few rows.

    Args:
        name: Of the service.
        most: Its max_batch_rows.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._batches = self._alone = 0

    def look(self, requests: int, rows: int, waiting: int) -> bool:
        """See how many requests a batch holds, and the rows that it left waiting.

        Returns:
            Whether to go on looking.
        """
        self._batches += 1
        self._alone += waiting > 0
        if requests > 1 or self._batches == WATCHED:
            return False
        if self._alone < ALONE:
            return True
        logger.warning(
            "service %s: batches hold one request each: max_batch_rows = %d is below the %d rows "
            "of requests that were there together; raise it",
            self._name,
            self._most,
            rows + waiting,
        )
        return False


def summary(name: str, count: Mapping[str, int]) -> str:
    """Say in one line what a rank has done, from its counters."""
    requests = f"{name}: {count['requests']} requests, {count['errors']} failed"
    early = [f"{count[key]} {key}" for key in EARLY if count[key]]
    requests += f" ({', '.join(early)})" if early else ""
    if not count["batches"]:
        return requests
    return (
        f"{requests}; {count['batches']} batches of {count['rows'] / count['batches']:.1f} "
        f"rows and {count['requests'] / count['batches']:.1f} requests on average, closed by "
        f"rows {count['closed_by_rows']}, census {count['closed_by_census']}, "
        f"delay {count['closed_by_delay']}"
    )
