"""How often the child of a model may be started again, before its replica is given up."""

from __future__ import annotations

from collections import deque

IN_A_ROW = 20  # deaths of parts of one batch: more than it takes to find a request by halves


class Restarts:
    """Counts the deaths of a child.

    The parts of one batch count once, however often they are cut: that finds the guilty request.

    Args:
        most: How many deaths there may be.
        seconds: In which time.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._times: deque[float] = deque()
        self._in_a_row = 0

    def count(self, now: float, *, part: bool = False) -> bool:
        """Count a death.

        Args:
            now: When it was.
            part: Whether it was on a part of a batch that had died before.

        Returns:
            Whether another child may be started.
        """
        self._in_a_row += 1
        if not part:
            self._times.append(now)
        while self._times and self._times[0] <= now - self._seconds:
            self._times.popleft()
        return len(self._times) <= self._most and (not part or self._in_a_row <= IN_A_ROW)

    def succeed(self) -> None:
        """Note that a batch was answered."""
        self._in_a_row = 0
