"""Rerun a failed batch in halves to isolate the requests that make the model fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.errors import Error
from mpiserve.failure import check_interrupt, reply_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpiserve._lib import core

Arrays = tuple[np.ndarray, ...]


def halves(group: list[Any]) -> list[list[Any]]:
    """Cut a list into two; a list of one stays whole."""
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half]


class Splitter:
    """Answers the requests of failed batches, at the cost of more calls of the model.

    If all n requests fail, it makes 2 n - 2 calls.

    Args:
        lib: The session handle of this rank.
        run: Runs the model on inputs, given the client of each row; returns outputs.
        report: Logs an exception, and describes it in one line.
    """

    def __init__(
        self,
        lib: core.Session,
        run: Callable[[Arrays, np.ndarray], Sequence[np.ndarray]],
        report: Callable[[BaseException], str],
    ) -> None:
        self._lib = lib
        self._run = run
        self._report = report

    def split(self, batch: core.Batch) -> bool:
        """Answer all requests of a batch that has failed, and has no answer yet.

        Returns:
            False if there is no memory for it; the batch is unchanged then.
        """
        try:
            inputs = tuple(array.copy() for array in batch.inputs)
            tickets = self._lib.hold_batch()
        except (MemoryError, Error):
            return False
        groups = halves(self._wanted(sorted(tickets, key=lambda ticket: ticket.row)))
        while groups:
            group = self._wanted(groups.pop(0))
            if group and not self._answered(group, inputs):
                groups = halves(group) + groups
        return True

    def _wanted(self, tickets: list[core.Ticket]) -> list[core.Ticket]:
        """Leave out requests that have an answer, from a part of the batch that did not fail."""
        return [ticket for ticket in tickets if self._lib.wants(ticket)]

    def _answered(self, group: list[core.Ticket], inputs: Arrays) -> bool:
        """Run the model on the rows of some requests; the failure of a single one is its answer."""
        try:
            outputs = self._run(_rows_of(group, inputs), _clients_of(group))
        except BaseException as error:
            check_interrupt()
            if len(group) > 1:
                return False
            self._lib.fail_ticket(group[0], reply_code(error), self._report(error))
            return True
        begin = 0
        for ticket in group:
            rows = slice(begin, begin + ticket.rows)
            begin = rows.stop
            self._lib.reply_ticket(ticket, [array[rows] for array in outputs])
        return True


def _rows_of(group: list[core.Ticket], inputs: Arrays) -> Arrays:
    """Copy the rows of some requests: the model may change what it gets, and then fail."""
    slices = [slice(ticket.row, ticket.row + ticket.rows) for ticket in group]
    copies = tuple(np.concatenate([array[rows] for rows in slices]) for array in inputs)
    for array in copies:
        array.flags.writeable = False  # as it is in a batch
    return copies


def _clients_of(group: list[core.Ticket]) -> np.ndarray:
    clients = np.array([ticket.client for ticket in group], np.int32)
    return clients.repeat([ticket.rows for ticket in group])
