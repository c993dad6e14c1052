"""Continuous batching: requests are held, join what runs, and are answered as they end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpiserve.errors import Code, ModelError
from mpiserve.failure import check_interrupt
from mpiserve.splitting import halves

if TYPE_CHECKING:
    from mpiserve import _broker
    from mpiserve.backends.base import Steps


class Held(NamedTuple):
    """A request that has no answer yet."""

    ticket: _broker.Ticket
    inputs: tuple[np.ndarray, ...]


class Stepper:
    """Serves a model that takes requests one by one.

    When a step fails, nobody knows for whom. All requests are dropped, and begin anew in
    halves, one half after the other, until one that fails is alone.

    Args:
        broker: Of this rank.
        steps: The model.
        finish: Makes the arrays of the signature, of so many rows, from a result.
        report: Puts an exception into one line, and logs it.
        split: Whether to do so; if not, all requests fail.
    """

    def __init__(
        self,
        broker: _broker.Session,
        steps: Steps,
        finish: Callable[[Any, int], list[np.ndarray]],
        report: Callable[[BaseException], str],
        split: bool = True,
    ) -> None:
        self._broker = broker
        self._steps = steps
        self._finish = finish
        self._report = report
        self._split = split
        self._keys = count()
        self._held: dict[int, Held] = {}  # by key, what the model has
        self._groups: list[list[Held]] = []  # what is to begin anew, one after the other
        self._alone = False  # what the model has is such a group: nothing joins it

    @property
    def busy(self) -> bool:
        """Whether there is something to go on with."""
        return bool(self._groups) or self._ask("busy")

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and nothing is held."""
        return not self._held and not self.busy

    @property
    def room(self) -> bool:
        """Whether more requests can begin; if not, they are to wait at the broker."""
        return not self._apart and self._ask("room")

    @property
    def _apart(self) -> bool:
        return bool(self._groups) or (self._alone and bool(self._held))

    def take(self, batch: _broker.Batch) -> None:
        """Hold the requests of a batch, and begin them."""
        inputs = [array.copy() for array in batch.inputs]
        taken = []
        for ticket in self._broker.hold_batch():
            rows = slice(ticket.row, ticket.row + ticket.rows)
            taken.append(Held(ticket, tuple(array[rows] for array in inputs)))
        if self._apart:
            self._groups.append(taken)
        else:
            self._alone = False
            self._begin(taken)

    def go_on(self) -> None:
        """Drop what nobody wants any more, take one step, answer what has ended."""
        self._forget()
        if not self._held:
            self._alone = bool(self._groups)
            self._begin(self._groups.pop(0) if self._groups else [])
        self._advance()

    def _ask(self, what: str) -> bool:
        """Ask the model what it is; one that cannot say fails what it has."""
        try:
            return bool(getattr(self._steps, what))
        except BaseException as error:
            check_interrupt()
            self._report(error)
            self._end(self._drop_all(), error)
            return False

    def _begin(self, group: list[Held]) -> None:
        for held in group:
            if not self._broker.wants(held.ticket):
                continue
            key = next(self._keys)
            self._held[key] = held
            try:
                self._steps.begin(key, held.ticket.client, held.inputs)
            except BaseException as error:
                check_interrupt()
                self._fail(key, error)

    def _forget(self) -> None:
        """Drop what nobody waits for any more: the others get faster."""
        for key, held in list(self._held.items()):
            if not self._broker.wants(held.ticket):
                del self._held[key]
                self._drop(key)

    def _drop(self, key: int) -> None:
        try:
            self._steps.drop(key)
        except BaseException as error:
            check_interrupt()
            self._report(error)

    def _drop_all(self) -> list[Held]:
        dropped, self._held = self._held, {}
        for key in dropped:
            self._drop(key)
        return [*dropped.values()]

    def _advance(self) -> None:
        try:
            results = dict(self._steps.step())
        except BaseException as error:
            check_interrupt()
            dropped = self._drop_all()
            if self._split and len(dropped) > 1:
                self._groups = halves(dropped) + self._groups
            else:
                self._end(dropped, error)
            return
        for key, result in results.items():
            self._answer(key, result)

    def _answer(self, key: int, result: Any) -> None:
        if key not in self._held:
            text = "a step has given the result of a request that it does not have"
            self._report(ModelError(Code.EMODEL, text))
            return
        if isinstance(result, BaseException):
            self._fail(key, result)
            return
        try:
            outputs = self._finish(result, self._held[key].ticket.rows)
        except BaseException as error:
            check_interrupt()
            self._fail(key, error)
            return
        self._broker.reply_ticket(self._held.pop(key).ticket, outputs)

    def _fail(self, key: int, error: BaseException) -> None:
        self._end([self._held.pop(key)], error)

    def _end(self, group: list[Held], error: BaseException) -> None:
        for held in group:
            self._broker.fail_ticket(held.ticket, Code.EMODEL, self._report(error))
