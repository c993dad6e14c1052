"""Where the tensors of a batch lie, for a rank and the child that runs its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]


class Located(NamedTuple):
    """A batch, and where its tensors lie: in memory of the rank, or in the child's own."""

    inputs: Arrays
    outputs: Arrays
    places: tuple[int, ...]
    copied: Arrays | None  # the inputs in the child's own memory, if they must be copied there
    results: Arrays | None  # the same of the outputs


class Early:
    """Copies results from the child's own memory, early if their clients can have them.

    Args:
        results: The results.
        outputs: Where clients look for them.
        done: Called with the number of first rows that are there.
    """

    def __init__(self, results: Arrays, outputs: Arrays, done: Callable[[int], None]) -> None:
        self._results = results
        self._outputs = outputs
        self._done = done
        self._rows = 0

    def __call__(self, rows: int) -> None:
        """Copy the first rows."""
        self._copy(rows)
        self._rows = rows
        self._done(rows)

    def finish(self) -> Arrays:
        """Return the results, which need no copy if none were early."""
        if not self._rows:
            return self._results
        self._copy(None)
        return self._outputs

    def _copy(self, end: int | None) -> None:
        for array, result in zip(self._outputs, self._results, strict=True):
            array[self._rows : end] = result[self._rows : end]
