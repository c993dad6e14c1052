"""Compile the model of a service in a process of its own, while the service answers."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mpiserve._lib import handover
from mpiserve.errors import Error
from mpiserve.serving.isolation.loader import libraries_of
from mpiserve.serving.isolation.messages import Order
from mpiserve.serving.isolation.process import ChildProcess
from mpiserve.serving.isolation.server_link import the_server, without_mpi

if TYPE_CHECKING:
    from mpiserve.backends.base import Native
    from mpiserve.config import ServiceConfig
    from mpiserve.serving.loading import Known

logger = logging.getLogger("mpiserve")

DELAY = 5.0  # seconds before it begins: a job that is over by then gains nothing
NICE = 10  # of the process: a tenth of a core that others want
LOOK = 0.25  # seconds between two looks


class Compilation:
    """Compiles a model, compares the result with the model, and measures both.

    It begins by itself some seconds later. Of several replicas one compiles, and the others begin
    when the cache has the result.

    Args:
        service: The table of the service.
        local_rank: Position among the inference ranks of this node.
        known: What warm-up has found out about the model.
        hint: The file that is there once the model has been compiled.
    """

    def __init__(self, service: ServiceConfig, local_rank: int, known: Known, hint: str) -> None:
        self._service, self._local_rank, self._known = service, local_rank, known
        self._hint = Path(hint)
        self._lock: TextIO | None = None
        self._child: ChildProcess | None = None
        self._next = time.monotonic() + DELAY
        self._end, self._found = 0.0, handover.LATE
        self._error: Error | None = None
        the_server.load(libraries_of(service), service.threads)
        the_server.start()  # it imports them until then

    def ended(self) -> bool:
        """Begin when it is time, and return whether `result` is there. Never waits."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOOK
        if self._child:
            self._found = self._child.found()
            return self._found != handover.LATE or now > self._end
        if self._hint.exists() or self._locked():
            try:
                self._begin(now)
            except Error as error:
                self._error = error
                return True
        return False

    def result(self) -> Native | None:
        """Return the engine to run the model by; None if Python should.

        Raises:
            Error: If there could be no process, or it was lost, or took too long.
        """
        child = self._child
        try:
            if not child:
                assert self._error
                raise self._error
            limit = f"load_timeout_s = {self._service.load_timeout_s:g} s"
            native: Native | None = child.result(self._found, "while it compiled", limit)
            return native
        finally:
            self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        child, self._child = self._child, None
        if child:
            child.end()
        if self._lock:
            self._lock.close()
            self._lock = None

    def _locked(self) -> bool:
        """Become the one that compiles, unless another replica is. Without locks all compile."""
        if self._lock:
            return True
        try:
            self._hint.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._hint.with_suffix(".lock").open("w")
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            assert self._lock
            self._lock.close()
            self._lock = None
            return False
        except OSError:  # of the folder; the child says what is wrong with it
            pass
        return True

    def _begin(self, now: float) -> None:
        service = self._service
        if not self._hint.exists():
            text = "service %s: torch compiles its model, while Python answers"
            logger.info(text, service.name)
        self._child = ChildProcess(the_server, service)
        self._end = now + service.load_timeout_s
        self._child.begin("compile", self._order(), NICE)

    def _order(self) -> Order:
        return Order(
            self._service,
            self._local_rank,
            tuple(sys.path),
            without_mpi(os.environ),
            frozenset(os.sched_getaffinity(0)),
            logger.getEffectiveLevel(),
            known=self._known,
        )
