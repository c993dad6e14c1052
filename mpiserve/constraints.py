"""Functions for `postprocess`, which correct small violations of what the physics demands.

Each makes a function of one array [rows, values]. A row that violates the constraint by more than
the tolerance becomes NaN, so that `check = "finite"` finds it, and the fallback answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mpiserve.errors import ArgumentError, Code

Constraint = Callable[[np.ndarray], np.ndarray]


def positive(tolerance: float) -> Constraint:
    """Make a function that replaces small negative values by 0.

    Args:
        tolerance: How far below 0 a value may be.
    """
    _check(tolerance)

    def constrain(values: np.ndarray) -> np.ndarray:
        return _kept(np.maximum(values, 0), _least(values) >= -tolerance)

    return constrain


def fractions(tolerance: float) -> Constraint:
    """Make a function that lets the values of each row sum up to 1, and none be negative.

    Args:
        tolerance: How far below 0 a value, and how far from 1 the sum may be.
    """
    _check(tolerance)

    def constrain(values: np.ndarray) -> np.ndarray:
        least = np.maximum(values, 0)
        with np.errstate(all="ignore"):
            sums = least.sum(-1, keepdims=True, dtype=np.float64)
            right = np.abs(values.sum(-1, keepdims=True, dtype=np.float64) - 1) <= tolerance
            right &= values.min(-1, keepdims=True) >= -tolerance
            return _kept((least / sums).astype(values.dtype), _least(right) > 0)

    return constrain


def conserved(weights: Sequence[float], tolerance: float, total: float = 0.0) -> Constraint:
    """Make a function that gives the weighted sum of each row its value, by the smallest change.

    Args:
        weights: One for each value of the last dimension, such as the masses of species.
        tolerance: How far the sum may be off, as a share of the sum of its absolute terms.
        total: The value.
    """
    _check(tolerance)
    by = np.asarray(weights, np.float64)
    if by.ndim != 1 or not np.isfinite(by).all() or not by.any():
        raise ArgumentError(Code.EARG, f"weights must be numbers that are not all 0: {weights!r}")

    def constrain(values: np.ndarray) -> np.ndarray:
        if values.shape[-1:] != by.shape:
            text = f"{len(by)} weights, and the last dimension has {values.shape[-1:]}"
            raise ArgumentError(Code.EARG, text)
        wide = values.astype(np.float64)
        with np.errstate(all="ignore"):
            off = (wide * by).sum(-1, keepdims=True) - total
            allowed = tolerance * (np.abs(wide * by).sum(-1, keepdims=True) + abs(total))
            made = wide - off * by / (by @ by)
            return _kept(made.astype(values.dtype), _least(np.abs(off) <= allowed) > 0)

    return constrain


def _check(tolerance: float) -> None:
    if not 0 <= tolerance < np.inf:
        text = f"tolerance is {tolerance!r}: it must be a number from 0 on"
        raise ArgumentError(Code.EARG, text)


def _least(values: np.ndarray) -> np.ndarray:
    """The least value of each row; NaN if it has one."""
    return values.reshape(len(values), -1).min(1)


def _kept(values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Replace rows that are not right by NaN. A comparison with NaN is not right."""
    wrong = ~right.reshape(-1, *[1] * (values.ndim - 1))
    return np.where(wrong, np.asarray(np.nan, values.dtype), values)
