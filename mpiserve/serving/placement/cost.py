"""What a side costs, as measured: seconds for each call, and for each row."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

WINDOW = 32  # samples that tell calls from rows
LATEST = 3  # of these, that tell how fast the side is now,
HORIZON = 1.0  # and the seconds for which they do


class Cost:
    """Estimates the seconds that a number of rows takes, from what others have taken.

    All samples of the window tell the shape, so much a call and so much a row. The median of the
    latest ones tells the level: it follows a change with the second sample, and no single one that
    is late for a reason of its own. A sample after a pause stands alone.

    Attributes:
        call: Seconds of a call, now.
        row: Seconds of each row, now.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._times: deque[float] = deque(maxlen=LATEST)
        self.call, self.row = 0.0, 0.0

    @property
    def known(self) -> bool:
        """Whether there is a sample."""
        return bool(self._samples)

    def add(self, rows: int, seconds: float, now: float) -> None:
        """Note at a time that so many rows have taken so long."""
        self._samples.append((rows, seconds))
        self._times.append(now)
        call, row = self._shape()
        fresh = sum(now - time <= HORIZON for time in self._times)
        latest = list(self._samples)[-fresh:]
        level = median(taken / max(call + row * n, 1e-9) for n, taken in latest)
        self.call, self.row = level * call, level * row

    def seconds(self, rows: float) -> float:
        """Estimate the seconds of so many rows; only if `known`."""
        return self.call + self.row * rows

    def _shape(self) -> tuple[float, float]:
        """Fit a line; where all samples have as many rows, all of it is the rows'."""
        mean_rows = fmean(rows for rows, _ in self._samples)
        mean = fmean(seconds for _, seconds in self._samples)
        spread = sum((rows - mean_rows) ** 2 for rows, _ in self._samples)
        if not spread:
            return 0.0, mean / mean_rows
        joint = sum((rows - mean_rows) * (seconds - mean) for rows, seconds in self._samples)
        row = min(max(joint / spread, 0.0), mean / mean_rows)
        return mean - row * mean_rows, row
