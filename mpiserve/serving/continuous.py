"""Continuous batching: hold requests, run them step by step, answer each when it ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.errors import Code, ModelError
from mpiserve.failure import check_interrupt

if TYPE_CHECKING:
    from mpiserve._lib import core
    from mpiserve.backends.base import Steps


class Stepper:
    """Serves a model that takes requests one by one.

    Args:
        lib: The session handle of this rank.
        steps: The model.
        finish: Makes the output arrays of a number of rows from a result.
        report: Logs an exception, and describes it in one line.
    """

    def __init__(
        self,
        lib: core.Session,
        steps: Steps,
        finish: Callable[[Any, int], list[np.ndarray]],
        report: Callable[[BaseException], str],
    ) -> None:
        self._lib = lib
        self._steps = steps
        self._finish = finish
        self._report = report
        self._keys = count()
        self._held: dict[int, core.Ticket] = {}

    @property
    def busy(self) -> bool:
        """Whether the model has work left."""
        return self._ask("busy")

    @property
    def idle(self) -> bool:
        """Whether the model has no work and holds no request."""
        return not self._held and not self.busy

    @property
    def room(self) -> bool:
        """Whether more requests can begin; if not, they wait at the broker."""
        return self._ask("room")

    def take(self, batch: core.Batch) -> None:
        """Hold the requests of a batch, and pass each to the model."""
        inputs = [array.copy() for array in batch.inputs]
        for ticket in self._lib.hold_batch():
            rows = slice(ticket.row, ticket.row + ticket.rows)
            self._begin(ticket, tuple(array[rows] for array in inputs))

    def go_on(self) -> None:
        """Drop requests that no client waits for, run one step, answer requests that ended."""
        self._forget()
        self._advance()

    def _ask(self, what: str) -> bool:
        """Read a property of the model; if that raises, fail all held requests."""
        try:
            return bool(getattr(self._steps, what))
        except BaseException as error:
            check_interrupt()
            self._report(error)
            self._fail_all(error)
            return what == "room"  # so that later requests reach the model, and get the error

    def _begin(self, ticket: core.Ticket, inputs: tuple[np.ndarray, ...]) -> None:
        key = next(self._keys)
        self._held[key] = ticket
        try:
            self._steps.begin(key, ticket.client, inputs)
        except BaseException as error:
            check_interrupt()
            self._fail(key, error)

    def _forget(self) -> None:
        """Drop requests that no client waits for, which makes the others faster."""
        for key, ticket in list(self._held.items()):
            if not self._lib.wants(ticket):
                del self._held[key]
                self._drop(key)

    def _drop(self, key: int) -> None:
        try:
            self._steps.drop(key)
        except BaseException as error:
            check_interrupt()
            self._report(error)

    def _fail_all(self, error: BaseException) -> None:
        for key in list(self._held):
            self._drop(key)
            self._fail(key, error)

    def _advance(self) -> None:
        try:
            results = dict(self._steps.step())
        except BaseException as error:
            check_interrupt()
            self._fail_all(error)
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
            outputs = self._finish(result, self._held[key].rows)
        except BaseException as error:
            check_interrupt()
            self._fail(key, error)
            return
        self._lib.reply_ticket(self._held.pop(key), outputs)

    def _fail(self, key: int, error: BaseException) -> None:
        self._lib.fail_ticket(self._held.pop(key), Code.EMODEL, self._report(error))
