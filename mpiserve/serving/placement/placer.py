"""Pass the batches of a service to its local model, to the remote one, or to both."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpiserve.backends.arrays import room_for
from mpiserve.errors import Code
from mpiserve.failure import check_interrupt, reply_code
from mpiserve.serving.continuous import Stepper
from mpiserve.serving.placement.breaker import HALF_OPEN, STATES
from mpiserve.serving.placement.placed_backend import Placed
from mpiserve.serving.placement.policy import LOCAL, REMOTE, Work

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.backends.base import Backend
    from mpiserve.backends.remote.remote_backend import RemoteSteps

logger = logging.getLogger("mpiserve")

Arrays = tuple[np.ndarray, ...]
WAIT = 1e-3  # seconds that a step waits for an answer
SAY = 1.0  # seconds between two lines of the log about a change of sides
LONG = 1.0  # seconds after which no answer is measured, too
RETURNED = "returned"  # rows that the local model has answered in place of the remote one


class Held:
    """A request that is answered in pieces.

    Attributes:
        ticket: The request.
        missing: Its rows without a result.
        outputs: Its results; None until there are some.
    """

    def __init__(self, ticket: core.Ticket) -> None:
        self.ticket = ticket
        self.missing = ticket.rows
        self.outputs: Arrays | None = None


class Piece(NamedTuple):
    """Rows of a request that one model answers.

    Attributes:
        held: The request.
        begin: The first one, in the request.
        inputs: Their inputs.
        since: When the remote model got them.
    """

    held: Held
    begin: int
    inputs: Arrays
    since: float = 0.0

    @property
    def rows(self) -> int:
        """Their number."""
        return len(self.inputs[0])


class Placer:
    """In place of a `Stepper`: holds the requests that the remote model has.

    Batches of the local model go the way that they go without a remote one.

    Args:
        lib: The session handle of this rank.
        index: The number of the service there.
        backend: Both models.
        run: Has the local model answer a batch; returns whether it could.
        finish: Makes the output arrays of a number of rows from a result.
        report: Logs an exception, and describes it in one line.

    Attributes:
        rows: Rows by where they were answered: "local", "remote", and "returned" for those that
            the local model has answered because the remote one did not, or not in time.
    """

    def __init__(
        self,
        lib: core.Session,
        index: int,
        backend: Placed,
        run: Callable[[core.Batch], bool],
        finish: Callable[[Any, int], list[np.ndarray]],
        report: Callable[[BaseException], str],
    ) -> None:
        self._lib, self._index, self._backend, self._run = lib, index, backend, run
        self._finish, self._report = finish, report
        assert backend.remote.steps
        self._steps: RemoteSteps = backend.remote.steps
        self._policy = backend.policy
        self._keys = count(1)
        self._away: dict[int, Piece] = {}  # by key, the oldest first
        self._back: list[Piece] = []  # that the remote model has not answered
        self._mirror = 0  # rows of a request whose answer is only measured; 0: there is none
        self._mirror_key = 0  # below 0, another one each time: late answers count for none
        self._mirror_since = 0.0
        self._work = Work(1, 1)
        self.rows: Counter[str] = Counter()
        self._changes, self._say_at = 0, 0.0
        self._shown: tuple[int, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether requests are held."""
        return bool(self._away or self._back)

    @property
    def idle(self) -> bool:
        """Whether no request is held."""
        return not self.busy

    @property
    def room(self) -> bool:
        """Whether a batch can begin: always at the local model, which is idle between two."""
        if len(self._away) < self._backend.remote.connections:
            return True
        return self._choose(self._work._replace(rows=1, requests=1)) == LOCAL

    def summary(self) -> str:
        """Say in some words where rows were answered."""
        where = ", ".join(f"{name} {rows}" for name, rows in self.rows.items())
        changes, opened = self._policy.changes, self._backend.breaker.opened
        return f"rows: {where or 'none'}; {changes} changes of sides, breaker opened {opened} times"

    def take(self, batch: core.Batch) -> None:
        """Pass a batch to one model, or to both."""
        self._receive(0.0)  # what the choice is by
        queued = self._lib.queue_rows(batch.service)
        self._work = Work(batch.rows, batch.requests, queued)
        side, now = self._choose(self._work), time.monotonic()
        remote = batch.rows if side == REMOTE else 0
        if self._both:
            remote = self._policy.split(self._now(self._work))
        probe = self._wants_probe(now)
        if probe and remote == batch.rows and self._backend.has_local:
            remote = 0 if batch.requests == 1 else -1
        elif probe and not remote:
            self._send_mirror(batch)
        if remote:
            self._divide(batch, remote)
        else:
            self._run_here(batch)

    def go_on(self) -> None:
        """Answer what has come, and let the local model do what is overdue."""
        self._forget()
        self._receive(WAIT if self._away else 0.0)
        self._look_overdue()
        back, self._back = self._back, []
        if back:
            self._answer_here(back, RETURNED)
        self.show()

    def show(self) -> None:
        """Let `mpiserve top`, `mpiserve metrics` and `Session.info` see where requests go."""
        rows, breaker = (self.rows[how] for how in (LOCAL, REMOTE, RETURNED)), self._backend.breaker
        side = 1 + (self._policy.side == REMOTE)
        counts = (*rows, self._policy.changes, breaker.opened)
        now = (side, STATES.index(breaker.state), *counts, *self._policy.nanoseconds())
        if now != self._shown:
            self._shown = now
            self._lib.set_placement(self._index, now)

    # ---- the choice

    @property
    def _both(self) -> bool:
        return self._backend.has_local and self._backend.has_remote

    def _now(self, work: Work) -> Work:
        oldest = next(iter(self._away.values()), None)
        age = time.monotonic() - oldest.since if oldest else 0.0
        return work._replace(under_way=len(self._away), oldest=age)

    def _choose(self, work: Work) -> str:
        backend, now = self._backend, time.monotonic()
        side = self._policy.choose(self._now(work), now, backend.has_local, backend.has_remote)
        if self._policy.changes > self._changes and now >= self._say_at:
            self._changes, self._say_at = self._policy.changes, now + SAY
            text = "service %s: the %s model answers now: %s"
            logger.info(text, backend.service.name, side, self._policy.why)
        return side

    def _wants_probe(self, now: float) -> bool:
        if self._backend.breaker.state == HALF_OPEN:
            return True
        return self._both and self._policy.probe(now)

    def _send_mirror(self, batch: core.Batch) -> None:
        """Measure the remote model with rows that the local one answers."""
        now = time.monotonic()
        if self._mirror and now - self._mirror_since < LONG:
            return
        if self._mirror:
            self._steps.drop(self._mirror_key)
            self._policy.remote.add(self._mirror, now - self._mirror_since, now)
        self._mirror_since = now
        self._mirror = rows = -(-batch.rows // batch.requests)
        self._mirror_key = -next(self._keys)
        inputs = tuple(array[:rows].copy() for array in batch.inputs)
        if error := self._begin(self._mirror_key, -1, inputs):
            self._mirror = 0
            self._backend.fail(error)

    def _begin(self, key: int, client: int, inputs: Arrays) -> BaseException | None:
        """Send rows to the remote model; return why that failed."""
        try:
            self._steps.begin(key, client, inputs)
        except BaseException as error:
            check_interrupt()
            self._steps.drop(key)
            return error
        return None

    # ---- the local model

    def _run_here(self, batch: core.Batch) -> None:
        begin, rows = time.monotonic(), batch.rows
        if self._run(batch):
            self._measure_local(rows, begin)
            self.rows[LOCAL] += rows

    def _measure_local(self, rows: int, begin: float) -> None:
        now = time.monotonic()
        self._policy.local.add(rows, now - begin, now)

    def _answer_here(self, pieces: list[Piece], how: str) -> None:
        """Run the local model on pieces, together as far as a batch has room for them."""
        group: list[Piece] = []
        most = 0 if self._backend.together else self._backend.service.max_batch_rows
        for piece in pieces:
            if group and sum(one.rows for one in group) + piece.rows > most:
                self._run_group(group, how)
                group = []
            group.append(piece)
        if group:
            self._run_group(group, how)

    def _run_group(self, group: list[Piece], how: str) -> None:
        begin = time.monotonic()
        try:
            outputs = self._outputs(group)
        except BaseException as error:
            check_interrupt()
            if len(group) > 1:
                for piece in group:
                    self._run_group([piece], how)
            else:
                self._fail(group[0], error)
            return
        rows, at = len(outputs[0]), 0
        self._measure_local(rows, begin)
        self.rows[how] += rows
        for piece in group:
            self._put(piece, tuple(array[at : at + piece.rows] for array in outputs))
            at += piece.rows

    def _outputs(self, group: list[Piece]) -> Any:
        backend = self._backend
        inputs = tuple(
            np.concatenate(arrays) for arrays in zip(*(p.inputs for p in group), strict=True)
        )
        for array in inputs:
            array.flags.writeable = False
        rows = len(inputs[0])
        clients = np.array([piece.held.ticket.client for piece in group], np.int32)
        backend.clients = clients.repeat([piece.rows for piece in group])
        outputs = room_for(backend.service, rows)
        result = backend.run_batch(backend.given(inputs), outputs, lambda _: None)
        return result if result is outputs else self._finish(result, rows)

    # ---- the remote model

    def _divide(self, batch: core.Batch, remote: int) -> None:
        """Send the last rows of a batch to the remote model; -1: all but the first request."""
        inputs = tuple(array.copy() for array in batch.inputs)
        tickets = sorted(self._lib.hold_batch(), key=lambda ticket: ticket.row)
        cut = tickets[0].rows if remote < 0 else len(inputs[0]) - remote
        here: list[Piece] = []
        for ticket in tickets:
            held, middle = Held(ticket), min(max(cut - ticket.row, 0), ticket.rows)
            for begin, end, kept in ((0, middle, True), (middle, ticket.rows, False)):
                rows = slice(ticket.row + begin, ticket.row + end)
                piece = Piece(held, begin, tuple(array[rows] for array in inputs))
                if begin < end and kept:
                    here.append(piece)
                elif begin < end:
                    self._send(piece)
        self._answer_here(here, LOCAL)

    def _send(self, piece: Piece) -> None:
        key = next(self._keys)
        self._away[key] = piece._replace(since=time.monotonic())
        if error := self._begin(key, piece.held.ticket.client, piece.inputs):
            self._settle(self._away.pop(key), error)

    def _receive(self, wait: float) -> None:
        """Take what the remote model has answered; wait so many seconds for the next answer."""
        for key, result in self._steps.ended(wait).items():
            rows = self._mirror if key < 0 else self._away[key].rows
            outputs = self._checked(result, rows)
            if isinstance(outputs, BaseException):
                self._backend.fail(outputs)
            else:
                self._backend.succeed()
                self._policy.remote.add(rows, self._steps.seconds[key], time.monotonic())
            if key < 0:
                self._mirror = 0
            else:
                self._settle(self._away.pop(key), outputs)

    def _checked(self, result: Any, rows: int) -> Any:
        """Return the outputs of an answer, or why it is none."""
        if isinstance(result, BaseException):
            return result
        try:
            return self._finish(result, rows)
        except BaseException as error:
            check_interrupt()
            return error

    def _settle(self, piece: Piece, outputs: Any) -> None:
        """Use an answer of the remote model; without one, the local model has to answer."""
        if not isinstance(outputs, BaseException):
            self.rows[REMOTE] += piece.rows
            self._put(piece, outputs)
        elif self._backend.has_local:
            self._back.append(piece)
        else:
            self._fail(piece, outputs)

    def _look_overdue(self) -> None:
        """Take back what the remote model has had for much longer than it should."""
        while self._away and self._backend.has_local:
            key, piece = next(iter(self._away.items()))
            age = time.monotonic() - piece.since
            if age < self._policy.limit(piece.rows):
                return
            self._steps.drop(key)
            self._back.append(self._away.pop(key))
            self._policy.remote.add(piece.rows, age, time.monotonic())

    # ---- the requests

    def _put(self, piece: Piece, outputs: Any) -> None:
        """Keep results of a request; reply when they are all there."""
        held = piece.held
        if piece.rows == held.ticket.rows:
            self._lib.reply_ticket(held.ticket, outputs)
            return
        if held.outputs is None:
            held.outputs = room_for(self._backend.service, held.ticket.rows)
        for room, array in zip(held.outputs, outputs, strict=True):
            room[piece.begin : piece.begin + piece.rows] = array
        held.missing -= piece.rows
        if not held.missing:
            self._lib.reply_ticket(held.ticket, held.outputs)

    def _fail(self, piece: Piece, error: BaseException) -> None:
        """Answer a request with an error; its other pieces are dropped."""
        text = self._report(error)
        code = reply_code(error) if isinstance(error, Exception) else Code.EMODEL
        self._drop(lambda other: other.held is piece.held)
        if piece.held.missing:
            piece.held.missing = 0
            self._lib.fail_ticket(piece.held.ticket, code, text)

    def _forget(self) -> None:
        """Drop requests that no client waits for."""
        if self._away:
            self._drop(lambda piece: not self._lib.wants(piece.held.ticket))

    def _drop(self, which: Callable[[Piece], bool]) -> None:
        for key in [key for key, piece in self._away.items() if which(piece)]:
            self._steps.drop(key)
            del self._away[key]
        self._back = [piece for piece in self._back if not which(piece)]


def stepper_of(
    lib: core.Session,
    index: int,
    backend: Backend,
    run: Callable[[core.Batch], bool],
    finish: Callable[[Any, int], list[np.ndarray]],
    report: Callable[[BaseException], str],
) -> Stepper | Placer | None:
    """Make what holds the requests of a model; None if each batch is answered at once."""
    if isinstance(backend, Placed):
        return Placer(lib, index, backend, run, finish, report)
    return Stepper(lib, backend.steps, finish, report) if backend.steps else None
