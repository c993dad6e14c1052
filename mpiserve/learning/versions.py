"""Which version of a model answers, and whether another one should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from math import inf
from typing import Any

from mpiserve.config.trainer import TrainerConfig
from mpiserve.config.version import UNTRAINED

MEAN = 1.0  # the error of a model that answers the mean, and of none


@dataclass(frozen=True)
class Version:
    """A version, as it was published.

    Attributes:
        name: Its name.
        error: On the held-out pairs of that time.
        rows: How many pairs had come.
        steps: How many training steps had been made.
        seconds: When, in seconds since 1970.
    """

    name: str
    error: float = MEAN
    rows: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass
class Versions:
    """The versions of a trainer.

    Attributes:
        answering: The one that answers.
        before: The one that would answer if that is rolled back; None: none.
        published: All that were published, in order.
        gone: The one that was rolled back since the last was published: the next must be better.
    """

    answering: Version
    before: Version | None = None
    published: list[Version] = field(default_factory=list)
    gone: Version | None = None

    def next_name(self, is_taken: Callable[[str], bool]) -> str:
        """Name the next version: v1, v2 and so on, the first one above those that were."""
        numbers = [int(v.name[1:]) for v in self.published if v.name[1:].isdigit()]
        names = (f"v{number}" for number in count(max(numbers, default=0) + 1))
        return next(name for name in names if not is_taken(name))

    def beats(
        self, table: TrainerConfig, error: float, answering: float, gone: float = inf
    ) -> bool:
        """Whether a version is good enough, by its error, beside those of others on the same pairs.

        Args:
            table: What is good enough.
            error: Of the version.
            answering: The error of the one that answers.
            gone: That of the one that was rolled back, if there is one.
        """
        other = MEAN if self.answering.name == UNTRAINED else answering
        least = min(other, gone) * (1 - table.least_gain)
        return error <= table.largest_error and error < least

    def worse(self, table: TrainerConfig, running: float, before: float) -> bool:
        """Whether the one that answers should give way to the one before, by their new errors."""
        return self.before is not None and not running <= table.rollback * before

    def publish(self, version: Version) -> None:
        """Note that a version answers from now on."""
        self.before, self.answering, self.gone = self.answering, version, None
        self.published.append(version)

    def roll_back(self) -> Version:
        """Note that the version before answers again; return the one that it replaces."""
        assert self.before is not None
        self.gone, self.answering, self.before = self.answering, self.before, None
        return self.gone

    def saved(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Versions:
        """Make it of what `saved` returned."""
        before, gone = (each and Version(**each) for each in (saved["before"], saved["gone"]))
        published = [Version(**each) for each in saved["published"]]
        return cls(Version(**saved["answering"]), before, published, gone)
