"""The pairs that a trainer keeps: the newest, a random share of all before, and held-out ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

LEAST_ROWS = 16  # to train with, and to validate with

Rows = dict[str, np.ndarray]  # arrays of as many rows each, by the paths of a capture


def count(rows: Mapping[str, np.ndarray]) -> int:
    """Return how many rows there are."""
    return len(next(iter(rows.values()), ()))


def taken(rows: Mapping[str, np.ndarray], which: Any) -> Rows:
    """Return some of the rows."""
    return {name: array[which] for name, array in rows.items()}


class Sample:
    """Room for rows.

    Args:
        like: Rows, for names, dtypes and shapes.
        most: How many there is room for.

    Attributes:
        rows: How many are there.
        seen: How many have come by.
    """

    def __init__(self, like: Mapping[str, np.ndarray], most: int) -> None:
        self.most = most
        self.rows = self.seen = 0
        self._arrays = {n: np.empty((most, *a.shape[1:]), a.dtype) for n, a in like.items()}

    def there(self) -> Rows:
        """Return the rows that are there, as views."""
        return taken(self._arrays, slice(self.rows))

    def at(self, which: np.ndarray) -> Rows:
        """Return copies of rows by their places."""
        return taken(self._arrays, which)

    def put(self, places: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Write rows to places; of several for one place the last one stays."""
        for name, array in self._arrays.items():
            array[places] = rows[name]

    def restore(self, rows: Mapping[str, np.ndarray], seen: int) -> None:
        """Have these rows, as many as there is room for."""
        self.rows = min(count(rows), self.most)
        self.put(np.arange(self.rows), taken(rows, slice(self.rows)))
        self.seen = seen


class Chance(Sample):
    """Rows of which each that has come by is there with the same probability."""

    def add(self, rows: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
        """Let rows come by."""
        new = count(rows)
        numbers = self.seen + np.arange(new)
        chosen = (rng.random(new) * (numbers + 1)).astype(np.int64)
        free = min(new, self.most - self.rows)
        chosen[:free] = self.rows + np.arange(free)
        stays = chosen < self.most
        self.put(chosen[stays], taken(rows, stays))
        self.rows += free
        self.seen += new


class Newest(Sample):
    """The rows that came last."""

    _next = 0  # where the next row goes; if there is no room, the oldest one is there

    def add(self, rows: Mapping[str, np.ndarray]) -> Rows:
        """Let rows come, no more than there is room for; return those that have left."""
        new = count(rows)
        places = (self._next + np.arange(new)) % self.most
        left = self.at(places[places < self.rows])
        self.put(places, rows)
        self._next = (self._next + new) % self.most
        self.rows = min(self.rows + new, self.most)
        self.seen += new
        return left

    def restore(self, rows: Mapping[str, np.ndarray], seen: int) -> None:
        """Have the last of these rows, which are in the order in which they came."""
        super().restore(taken(rows, slice(-self.most, None)), seen)
        self._next = self.rows % self.most

    def last(self, most: int) -> Rows:
        """Return the rows that came last, at most so many, in their order."""
        wanted = min(most, self.rows)
        return self.at((self._next - wanted + np.arange(wanted)) % self.most)


class Reservoir:
    """Keeps pairs in bounded memory.

    Of all pairs, a share is held out, and never drawn. Of the others, one half of the room has the
    newest. A pair that leaves there may stay in the other half, which is a fair sample of all that
    have left: what the simulation was like long ago is not forgotten.

    Args:
        like: Rows, for names, dtypes and shapes.
        most: How many pairs to draw from.
        held_out: The share that is held out.
        new_share: The share of a batch that is drawn from the newest.
        seed: Of what is random.
    """

    def __init__(
        self,
        like: Mapping[str, np.ndarray],
        most: int,
        held_out: float,
        new_share: float,
        seed: int,
    ) -> None:
        self._newest = Newest(like, max(1, most // 2))
        self._kept = Chance(like, max(1, most - most // 2))
        self.held = Chance(like, max(LEAST_ROWS, int(most * held_out)))
        self._held_out, self._new_share = held_out, new_share
        self._rng = np.random.default_rng(seed)

    @property
    def seen(self) -> int:
        """How many pairs have come, with those that are held out."""
        return self._newest.seen + self.held.seen

    @property
    def rows(self) -> int:
        """How many pairs there are to draw from."""
        return self._newest.rows + self._kept.rows

    def has(self, rows: int) -> bool:
        """Whether so many have come, and there are some to draw from and some that are held out."""
        return self.seen >= rows and min(self.rows, self.held.rows) >= LEAST_ROWS

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add new pairs."""
        for begin in range(0, count(rows), self._newest.most):
            self._add(taken(rows, slice(begin, begin + self._newest.most)))

    def _add(self, rows: Rows) -> None:
        out = self._rng.random(count(rows)) < self._held_out
        self.held.add(taken(rows, out), self._rng)
        left = self._newest.add(taken(rows, ~out))
        self._kept.add(left, self._rng)

    def draw(self, rows: int) -> Rows:
        """Draw pairs, with replacement."""
        new = round(rows * self._new_share) if self._kept.rows else rows
        fresh = self._newest.at(self._rng.integers(0, self._newest.rows, new))
        if new == rows:
            return fresh
        kept = self._kept.at(self._rng.integers(0, self._kept.rows, rows - new))
        return {name: np.concatenate([array, kept[name]]) for name, array in fresh.items()}

    def newest(self, most: int) -> Rows:
        """Return the pairs that came last and are not held out."""
        return self._newest.last(most)

    def all(self) -> Rows:
        """Return all pairs that may be drawn."""
        new, kept = self._newest.there(), self._kept.there()
        return {name: np.concatenate([kept[name], new[name]]) for name in new}

    # ---- on the disk

    def saved(self) -> Rows:
        """Return arrays from which `restore` makes the same reservoir."""
        new = self._newest.last(self._newest.rows)
        parts = {"new": new, "kept": self._kept.there(), "held": self.held.there()}
        arrays = {f"{part}/{name}": a for part, rows in parts.items() for name, a in rows.items()}
        seen = [sample.seen for sample in (self._newest, self._kept, self.held)]
        random = json.dumps(self._rng.bit_generator.state)
        return arrays | {"seen": np.array(seen), "random": np.array(random)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Have the pairs of another reservoir, of the same tensors."""
        seen = [int(number) for number in arrays["seen"]]
        samples = {"new": self._newest, "kept": self._kept, "held": self.held}
        for (part, sample), number in zip(samples.items(), seen, strict=True):
            rows = {
                name.removeprefix(f"{part}/"): array
                for name, array in arrays.items()
                if name.startswith(f"{part}/")
            }
            sample.restore(rows, number)
        self._rng.bit_generator.state = json.loads(str(arrays["random"]))
