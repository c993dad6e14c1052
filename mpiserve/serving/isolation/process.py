"""One child process of a model, as its rank sees it: calls with a time limit, and its end."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mpiserve._lib import handover
from mpiserve.config import ServiceConfig
from mpiserve.errors import Code, ModelError
from mpiserve.serving.isolation.channel import OK, RUN, SEGMENT, Arrays, Channel, Place, Room
from mpiserve.serving.isolation.messages import Answer
from mpiserve.serving.isolation.server_link import ForkServer, ending

if TYPE_CHECKING:
    from mpiserve._lib.engine import Forward

LOOK = 1.0  # seconds between two looks whether anybody wants what the child does
UNWANTED = -1  # beside the outcomes of `handover`
CLOSE = 10.0  # seconds that a child has to close its model
LEAVE = 5.0  # seconds that it then has to end

NOBODY = "every simulation rank has left, or one has failed"

logger = logging.getLogger("mpiserve")


class LostError(ModelError):
    """The child is gone: it died, or was killed because it took too long.

    Attributes:
        taken: Whether it had begun the call.
    """

    def __init__(self, code: int, text: str, *, taken: bool = True) -> None:
        super().__init__(code, text)
        self.taken = taken


def wait_for_rows(
    calls: handover.Handover,
    pidfd: int,
    rows: int,
    done: Callable[[int], None],
    end: float | None,
    wanted: Callable[[], bool],
) -> int:
    """Wait for the end of a call, and report rows that are done before; the arguments are of `run`.

    Args:
        calls: The calls of a child.
        pidfd: The child.
        rows: The rows of the batch.
        done: Called with the number of first rows of all outputs that are final.
        end: When the child is late, as time.monotonic tells it; None: never.
        wanted: Whether anybody wants the outcome.

    Returns:
        ENDED, DEAD or LATE of `handover`, or UNWANTED. A child that reports for ever is late too.
    """
    last = 0
    while True:
        left = LOOK if end is None else max(0.0, end - time.monotonic())
        found = calls.wait(min(left, LOOK), pidfd)
        if found == handover.LATE and left >= LOOK:
            if not wanted():
                return UNWANTED
            continue
        if found != handover.ROWS:
            return found
        if not left:
            return handover.LATE
        if last < (rows_done := calls.rows_done) <= rows:
            last = rows_done
            done(last)


class ChildProcess:
    """A child that loads and runs the model of a service. One thread at a time uses it.

    Args:
        server: The fork server.
        service: The table of the service.
        files: More descriptors for the child, which gets copies.
        wanted: Returns whether anybody wants what it does; asked while a call takes long.

    Raises:
        ModelError: If it cannot be made.
    """

    def __init__(
        self,
        server: ForkServer,
        service: ServiceConfig,
        files: Sequence[int] = (),
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._server, self._service = server, service.name
        self._wanted = wanted
        try:
            self._channel = Channel.create(service)
        except OSError as error:
            text = f"no memory to share with the model's process: {error}"
            raise ModelError(Code.EMODEL, text) from None
        try:
            self._process = server.fork(service.name, (*self._channel.files, *files))
        except BaseException:
            self._channel.close()
            raise
        self._room = Room(service, self._channel.own)
        self.pid = self._process.pid
        self._ended = False
        self._ending = threading.Lock()

    @property
    def dead(self) -> bool:
        """Whether it has died by itself. Never waits."""
        return not self._ended and handover.dead(self._process.pidfd)

    def arrays(self, rows: int) -> tuple[Arrays, Arrays, Any]:
        """View the inputs, outputs and clients of a batch."""
        return self._room.arrays(rows)

    def places(self) -> list[Place]:
        """Return where `arrays` lie."""
        return self._room.places()

    def run(
        self,
        rows: int,
        places: tuple[int, ...],
        done: Callable[[int], None],
        limit: float,
        shapes: Sequence[Sequence[int]] | None = None,
    ) -> Any:
        """Run the model on a batch, or wait for its end if `forward` has handed it over.

        Args:
            rows: The rows.
            places: The places of the inputs, the outputs and the clients, one after the other.
            done: Called with the number of first rows of all outputs that are final.
            limit: The seconds that it may take; 0 means no limit.
            shapes: Those of the inputs, where they have free dimensions.

        Returns:
            The shapes of the results, if shapes were given.

        Raises:
            LostError: If the child dies or takes too long.
            Error: With the text of the model's exception.
        """
        calls = self._channel.calls
        posted = calls.resume()
        if not posted:
            self._channel.run(rows, places, shapes)
        end = (posted or time.monotonic()) + limit if limit else None
        found = wait_for_rows(calls, self._process.pidfd, rows, done, end, self._wanted)
        self._check(found, f"timeout_s = {limit:g} s", "on this batch")
        return None if calls.answer == (OK, 0) else self._answered()

    def forward(self, inputs: int, outputs: int, address: int, size: int) -> Forward:
        """Make an engine that hands batches over; `run` goes on where it fails.

        Args:
            inputs: How many there are.
            outputs: The same.
            address: Of the memory of the rank that the child maps.
            size: Its bytes.
        """
        from mpiserve._lib.engine import Forward  # it loads MPI

        calls, last, memory = self._channel.calls, self.places()[-1], (SEGMENT, address, size)
        found = calls.forward(RUN, inputs, outputs, memory, last, self._process.pidfd)
        return Forward(*found, calls)

    def call(self, name: str, *arguments: Any, limit: float, what: str, key: str = "") -> Any:
        """Call a method of the child.

        Args:
            name: The name of the method.
            arguments: Its arguments.
            limit: The seconds that it may take; 0 means no limit.
            what: What it does, for error texts: "while it loaded the model".
            key: The key of the configuration that sets the limit, for error texts.

        Raises:
            LostError: If the child dies or takes too long.
            Error: With the text of the exception that the method raises.
        """
        self._channel.ask((name, *arguments))
        calls, end = self._channel.calls, time.monotonic() + limit if limit else None
        found = wait_for_rows(calls, self._process.pidfd, 0, _ignore, end, self._wanted)
        self._check(found, f"{key or 'the limit'} = {limit:g} s", what)
        return self._answered()

    def begin(self, name: str, *arguments: Any) -> None:
        """Begin a call of a method of the child; `found` tells when it has ended."""
        self._channel.ask((name, *arguments))

    def found(self) -> int:
        """Return whether the call that was begun has ended, as of Handover.wait. Never waits."""
        return self._channel.calls.wait(0.0, self._process.pidfd)

    def result(self, found: int, what: str, limit: str) -> Any:
        """Return what the call that was begun returns.

        Args:
            found: What `found` returned.
            what: What it did, for error texts.
            limit: The limit of its time that is over, if `found` is LATE: the child is killed.

        Raises:
            LostError: If the child is dead, or too late.
            Error: With the text of the exception that the method raises.
        """
        self._check(found, limit, what)
        return self._answered()

    def _check(self, found: int, limit: str, what: str) -> None:
        if found == handover.ENDED:
            return
        if found == handover.LATE:
            self.end()
            text = f"the model's process took over {limit} {what}: it was killed"
        elif found == UNWANTED:
            self.end()
            text = f"the model's process was killed {what}: {NOBODY}"
            logger.warning("service %s: %s", self._service, text)
        else:
            text = f"the model's process {ending(self.end(), what)}"
        taken = self._channel.calls.taken  # after its end: it might take the call just now
        # Not by a variable: its traceback would hold this frame, and with it the memory of the
        # child until the next collection of garbage.
        raise LostError(Code.EMODEL, text, taken=taken)

    def _answered(self) -> Any:
        try:
            _, answer = self._channel.answered()
        except Exception as error:  # the child has written over its memory
            self.end()
            text = f"the answer of the model's process cannot be read: {error!r}"
            raise LostError(Code.EMODEL, text) from None
        assert isinstance(answer, Answer)
        for level, text in answer.log:
            logger.log(level, "%s", text)
        if answer.failure:
            raise answer.failure.error()
        return answer.result

    def lost(self) -> LostError:
        """Return the error of a child that has died while it had nothing to do."""
        text = f"the model's process {ending(self.end(), 'between two batches')}"
        return LostError(Code.EMODEL, text)

    def close(self) -> None:
        """Close the model, and end the process.

        Raises:
            Error: With the text of the exception that the model raises.
        """
        if self._ended:
            return
        try:
            self.call("close", limit=CLOSE, what="while it closed the model")
            end = time.monotonic() + LEAVE
            while not handover.dead(self._process.pidfd) and time.monotonic() < end:
                time.sleep(0.001)
        finally:
            self.end()

    def kill(self) -> None:
        """Kill the process, in any thread; the thread that waits for a call finds it dead."""
        with self._ending:
            if not self._ended:  # else its number may be that of another one
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int | None:
        """Kill the process and all that it has started; return its status."""
        with self._ending:
            if self._ended:
                return None
            self._ended = True
        self._channel.close()
        return self._server.end(self._process)


def _ignore(_rows: int) -> None:
    """Ignore rows: a message has none."""
