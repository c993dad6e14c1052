"""One rank's part of a model that several ranks run together, each in a child process."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mpiserve.backends.torch.peers import Meeting
from mpiserve.errors import Code
from mpiserve.serving.isolation.isolated import Arrays, Isolated
from mpiserve.serving.isolation.messages import Order
from mpiserve.serving.isolation.process import ChildProcess, LostError


class IsolatedPart(Isolated):
    """Has a child process load and run one rank's part.

    The head of the replica decides when the children of all ranks restart together.

    Args:
        meeting: Where the children meet; the port is another one for each start.
        args: As of Isolated.

    Attributes:
        port: The port at which the children met last.
    """

    def __init__(self, meeting: Meeting, *args: Any) -> None:
        super().__init__(*args)
        self._meeting = meeting
        self.port = 0
        self._listener: socket.socket | None = None
        self._newest: ChildProcess | None = None
        self._kills = self._kills_before = 0

    # ---- the child

    def starter(self, port: int, listener: socket.socket | None) -> Callable[[], None]:
        """Return a function for any thread, which starts a child that loads the model.

        Args:
            port: The port at which the children meet.
            listener: The socket, on the head.
        """
        self.port, self._listener, self._kills_before = port, listener, self._kills

        def start() -> None:
            self._child = self._started()

        return start

    def _forked(self) -> ChildProcess:
        with self._listener or socket.socket() as listener:
            files = [listener.fileno()] if self._listener else []
            self._newest = child = ChildProcess(self._server, self.service, files)
        if self._kills != self._kills_before:  # kill() did not see it
            child.kill()
        return child

    def _order(self) -> Order:
        return replace(super()._order(), meeting=self._meeting._replace(port=self.port))

    def kill(self) -> None:
        """Kill the child, in any thread; a thread that waits for it gets LostError."""
        self._kills += 1
        if self._newest:
            self._newest.kill()

    def discard(self) -> None:
        """Clear away the child, while no thread uses it."""
        child, self._child = self._newest, None
        if child:
            child.end()

    def lose(self, error: LostError, *, part: bool) -> None:
        """Note that the replica is lost, on the head; give it up if that has happened too often."""
        self.discard()
        self._lose(error, part=part)

    @property
    def host(self) -> str:
        """The host at which the children meet."""
        return self._meeting.host

    @property
    def lost(self) -> bool:
        """Whether there is no child."""
        return self._child is None

    @property
    def given_up(self) -> str:
        """Why the replica is not started again, or ""."""
        return self._given_up

    def dead(self) -> LostError | None:
        """Return the error of a child that has died while it had nothing to do."""
        child = self._child
        return child.lost() if child and child.dead else None

    def _working(self) -> ChildProcess:
        if self._child is None:
            error = LostError(Code.EMODEL, self._given_up or "the model's process is lost")
            error.taken = False
            raise error
        return self._child

    def supervise(self) -> None:
        """Do nothing: the head of the replica watches over the children."""

    # ---- batches

    def inputs(self, rows: int) -> Sequence[Any] | None:
        """View the child's memory for the inputs of a batch, if there is a child."""
        return self._arrays(self._child, rows)[0] if self._child else None

    def run(self, inputs: Arrays) -> Any:
        """Run this rank's part on a batch.

        Raises:
            LostError: If the child dies, or is killed since it takes too long.
            Error: With the text of the model's exception.
        """
        child, rows = self._working(), len(inputs[0])
        mine, results, _ = self._arrays(child, rows)
        for array, given in zip(mine, inputs, strict=True):
            if array is not given:
                array[...] = given
        places = tuple(number for place in child.places() for number in place)
        child.run(rows, places, _ignore, self.service.timeout_s)
        return results

    def succeed(self) -> None:
        """Note that a batch was answered, on the head."""
        self._restarts.succeed()


def _ignore(_rows: int) -> None:
    """Ignore rows that are done early: all ranks must agree on a batch."""
