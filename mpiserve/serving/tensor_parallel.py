"""Run a model on the ranks of one replica together: the head and its followers.

The head broadcasts each batch to its followers by MPI. Every rank runs its part of the model in a
thread, and the followers report the outcome to the head. So a rank that fails, or is stuck in
a collective of the model because another one failed, still answers.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from mpi4py import MPI

from mpiserve.errors import ClosedError, Code, ModelError, PeerError
from mpiserve.failure import describe
from mpiserve.mpi.requests import LONGEST, SHORTEST, TEXT, Pause, complete

if TYPE_CHECKING:
    from mpiserve._lib import core

COMMAND, OUTCOME, ALIVE = 1, 2, 3  # tags
KNOWN = 16  # numbers of rows whose arrays are kept
RUN, GIVE_UP, STOP, CHANGE = 1, 2, 3, 4  # the commands of the head
LATE = 5.0  # seconds that the others have when one rank has failed

Arrays = tuple[np.ndarray, ...]
Run = Callable[[Arrays], Any]


class Outcome(NamedTuple):
    """The outcome of a rank's part of a batch: a result, or an exception."""

    result: Any = None
    error: BaseException | None = None


class Part:
    """Runs one rank's part of a batch in a thread, which may get stuck.

    A collective of the model cannot be interrupted. The thread is a daemon, so that the process
    can end while the thread waits for a rank that is gone.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._process = os.getpid()
        self._jobs: queue.SimpleQueue[Arrays] = queue.SimpleQueue()
        self._outcome: Outcome | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def start(self, inputs: Arrays) -> None:
        """Begin a batch."""
        self._ended.clear()
        self._jobs.put(inputs)

    def wait(self, seconds: float) -> Outcome | None:
        """Wait a little for the end of the batch."""
        return self._outcome if self._ended.wait(seconds) else None

    def _work(self) -> None:
        while True:
            inputs = self._jobs.get()
            try:
                self._outcome = Outcome(result=self._run(inputs))
            except BaseException as error:
                self._outcome = Outcome(error=error)
            if os.getpid() != self._process:  # a child that the model forked: it is no rank
                os._exit(int(self._outcome.error is not None))
            self._ended.set()


class Team:
    """The base of head and follower: the communicator, and this rank's part of a batch.

    Args:
        lib: The session handle of this rank.
        comm: The ranks of the replica; the head is rank 0.
        run: Runs this rank's part of a batch on its inputs.
        make: Makes arrays for the inputs of a number of rows.
        seconds: The time-out for an answer of a rank.
    """

    def __init__(
        self,
        lib: core.Session,
        comm: MPI.Comm,
        run: Run,
        make: Callable[[int], Arrays],
        seconds: float,
    ) -> None:
        self.lib = lib
        self.comm = comm
        self._make = make
        self._known: dict[int, Arrays] = {}
        self.seconds = seconds
        self.part = Part(run)
        self.broken = ""

    @contextmanager
    def mpi(self) -> Iterator[None]:
        """Keep the broker thread out of MPI in this context."""
        self.lib.mpi_take()
        try:
            yield
        finally:
            self.lib.mpi_give()

    def arrays(self, rows: int) -> Arrays:
        """Return this rank's own memory for the inputs of a batch."""
        if rows not in self._known:
            self._known = self._known if len(self._known) < KNOWN else {}
            self._known[rows] = self._make(rows)
        return self._known[rows]

    def spread(self, arrays: Arrays) -> bool:
        """Broadcast the head's arrays into those of the others."""
        end = time.monotonic() + self.seconds
        with self.mpi():
            waits = [self.comm.Ibcast([_bytes(array), MPI.BYTE], root=0) for array in arrays]
            return all(complete(wait, end - time.monotonic()) for wait in waits)


class Head(Team):
    """Sends each batch and change to the followers, and collects their outcomes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._followers = range(1, self.comm.size)
        self._sequence = 0

    def run(self, batch: Arrays) -> Any:
        """Run a batch on all ranks.

        A part that timed out may still read its inputs, so it gets a copy, as the followers do.

        Raises:
            ModelError: If a part failed. When the ranks cannot have stayed in step,
                this and all later batches fail.
        """
        if self.broken:
            raise ModelError(Code.EMODEL, self.broken)
        try:
            return self._run(batch)
        except MPI.Exception as error:  # a rank is gone, and this MPI reports it
            self._break(str(error))

    def _run(self, batch: Arrays) -> Any:
        self._sequence += 1
        inputs = self.arrays(len(batch[0]))
        for mine, array in zip(inputs, batch, strict=True):
            mine[:] = array
        self._send(RUN, len(batch[0]))
        if not self.spread(inputs):
            self._break(f"a rank did not receive a batch within {self.seconds:g} s")
        self.part.start(inputs)
        ended, texts = self._wait()
        if ended and len(texts) == len(self._followers):
            if ended.error is None and not any(texts.values()):
                return ended.result
            if ended.error is not None and all(texts.values()):
                raise ended.error  # all alike: they are in step, and go on
        self._break(_differ(ended, texts))

    def change(self, what: int, version: str) -> None:
        """Have the followers change their model, as the head does next.

        Raises:
            ModelError: If the ranks are out of step.
        """
        if self.broken:
            raise ModelError(Code.EMODEL, self.broken)
        self._send(CHANGE, what)
        text = np.zeros(TEXT, np.uint8)
        data = version.encode()[:TEXT]
        text[: len(data)] = np.frombuffer(data, np.uint8)
        if not self.spread((text,)):
            self._break(f"a rank did not receive a change within {self.seconds:g} s")

    def stop(self) -> None:
        """Stop the followers.

        Raises:
            PeerError: If one is gone: MPI_Finalize may wait for it for ever.
        """
        self._send(STOP)
        end, silent = time.monotonic() + LATE, set(self._followers if self.broken else ())
        while silent:
            silent -= {rank for rank in silent if self._alive(rank)}
            if silent and time.monotonic() > end:
                raise _gone(min(silent))
            time.sleep(LONGEST)

    def _alive(self, rank: int) -> bool:
        """Return whether a rank has confirmed that it was given up."""
        with suppress(MPI.Exception), self.mpi():
            return self.comm.Iprobe(source=rank, tag=ALIVE)
        return False

    def _send(self, what: int, rows: int = 0) -> None:
        message = np.array([what, self._sequence, rows], np.int64)
        with self.mpi():
            for rank in self._followers:
                # Small enough to be sent at once whatever the receiver does.
                self.comm.Isend(message, dest=rank, tag=COMMAND).Free()
            self._last = message  # the memory of what may be on its way

    def _break(self, text: str) -> NoReturn:
        self.broken = f"the replica of {self.comm.size} ranks is out of step: {text}"
        with suppress(MPI.Exception):  # the rank that broke it may be gone
            self._send(GIVE_UP)
        raise ModelError(Code.EMODEL, self.broken)

    def _wait(self) -> tuple[Outcome | None, dict[int, str]]:
        """Wait for all parts; after a failure, at most `LATE` seconds for the others."""
        texts: dict[int, str] = {}
        limit, bad = time.monotonic() + self.seconds, False
        step = SHORTEST
        while True:
            mine = self.part.wait(step)
            step = min(1.5 * step, LONGEST)
            texts |= self._outcomes()
            if mine and len(texts) == len(self._followers):
                return mine, texts
            if not bad and (any(texts.values()) or (mine and mine.error is not None)):
                bad, limit = True, min(limit, time.monotonic() + LATE)
            if time.monotonic() > limit:
                return mine, texts

    def _outcomes(self) -> dict[int, str]:
        """Receive the outcomes of followers for this batch."""
        texts = {}
        message, status = np.zeros(8 + TEXT, np.uint8), MPI.Status()
        with self.mpi():
            for rank in self._followers:
                if not self.comm.Iprobe(source=rank, tag=OUTCOME, status=status):
                    continue
                message[:] = 0
                self.comm.Recv(message, source=rank, tag=OUTCOME)
                if message[:8].view(np.int64)[0] == self._sequence:
                    texts[rank] = message[8:].tobytes().rstrip(b"\0").decode(errors="ignore")
        return texts


def _gone(rank: int) -> PeerError:
    """Make the error of a rank that does not answer: it was killed, or is stuck."""
    text = f"tensor-parallel rank {rank} of this replica is gone"
    return PeerError(Code.EPEER, text)


def _differ(mine: Outcome | None, texts: dict[int, str]) -> str:
    """Name the rank that failed first."""
    for rank, text in texts.items():
        if text:
            return f"tensor-parallel rank {rank}: {text}"
    if mine and mine.error is not None:
        return f"tensor-parallel rank 0: {describe(mine.error)}"
    return "a rank did not end its part in time"


class Follower(Team):
    """Follows the head's commands until every simulation rank has left.

    Args:
        change: Changes this rank's model as the head commands; fails if the other ranks fail.
    """

    def __init__(
        self,
        *args: Any,
        change: Callable[[int, str], None],
    ) -> None:
        super().__init__(*args)
        self._change = change
        self._running = self._stopped = self._closed = False
        self._sequence = 0
        self._limit = 0.0
        self._pause = Pause()

    def step(self) -> bool:
        """Check once for clients that leave, commands of the head and the end of a batch.

        Returns:
            False when the head has stopped this rank and every simulation rank has left.

        Raises:
            PeerError: If the head is gone.
        """
        if not self._closed:
            self._look_at_clients()
        if self.comm.Iprobe(source=0, tag=COMMAND):
            self._pause.reset()
            self._receive()
        if not self._running:
            self._pause()
        elif outcome := self.part.wait(LONGEST):
            self._running = False
            self._pause.reset()
            self._report(outcome)
        if self._closed and not self._stopped and time.monotonic() > self._limit:
            raise _gone(0)
        return not (self._stopped and self._closed)

    def _look_at_clients(self) -> None:
        """See whether all clients have left: each tells every inference rank, not only the head."""
        try:
            self.lib.next_batch(0.0)
        except ClosedError:
            self._closed = True
            # The head may be busy with a last batch.
            self._limit = time.monotonic() + self.seconds + 3 * LATE

    def _receive(self) -> None:
        command = np.zeros(3, np.int64)
        self.comm.Recv(command, source=0, tag=COMMAND)
        what, self._sequence, rows = map(int, command)
        if what == STOP:
            self._stopped = True
        elif what == GIVE_UP:
            self.broken = "given up by the head"
            self._running = False
            self.comm.Isend(np.zeros(0, np.uint8), dest=0, tag=ALIVE).Free()
        elif not self.broken:
            (self._begin if what == RUN else self._change_to)(rows)

    def _begin(self, rows: int) -> None:
        inputs = self.arrays(rows)
        if self.spread(inputs):
            self.part.start(inputs)
            self._running = True
        else:
            self.broken = "the head went away in the middle of a batch"

    def _change_to(self, what: int) -> None:
        text = np.zeros(TEXT, np.uint8)
        if self.spread((text,)):
            self._change(what, text.tobytes().rstrip(b"\0").decode())
        else:
            self.broken = "the head went away in the middle of a change"

    def _report(self, outcome: Outcome) -> None:
        message = np.zeros(8 + TEXT, np.uint8)
        message[:8].view(np.int64)[0] = self._sequence
        if outcome.error is not None:
            text = describe(outcome.error).encode()[:TEXT]
            message[8 : 8 + len(text)] = np.frombuffer(text, np.uint8)
        if not self.broken:
            complete(self.comm.Isend(message, dest=0, tag=OUTCOME), self.seconds)


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
