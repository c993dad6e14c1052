"""Small violations of what the physics demands are corrected, and others are no answers."""

import numpy as np
import pytest

from mpiserve import constraints
from mpiserve.errors import ArgumentError


def test_small_negative_values_become_0_and_large_ones_end_the_row():
    x = np.array([[1, -1e-4, 2], [0, 3, -1], [np.nan, 1, 1], [0, 0, 0]], np.float32)
    y = constraints.positive(1e-3)(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y[[0, 3]], [[1, 0, 2], [0, 0, 0]])
    assert np.isnan(y[1:3]).all()
    assert x[0, 1] < 0, "the model's array stays"


def test_fractions_sum_up_to_1():
    x = np.array([[0.5, 0.5004, -1e-5], [0.5, 0.6, 0], [0.7, 0.31, -0.01], [0, np.inf, 0]])
    y = constraints.fractions(1e-3)(x)
    np.testing.assert_allclose(y[0].sum(), 1, rtol=1e-15)
    assert y[0, 2] == 0 and np.isnan(y[1:]).all()
    x = np.random.default_rng(0).random((50, 4, 3)).astype(np.float32)
    x /= x.sum(-1, keepdims=True) * np.float32(1.0004)
    np.testing.assert_allclose(constraints.fractions(1e-3)(x).sum(-1), 1, rtol=1e-6)
    x[7, 3] *= 2  # a row is all that the first index counts
    assert np.isnan(constraints.fractions(1e-3)(x)).all((1, 2)).nonzero()[0].tolist() == [7]


def test_a_weighted_sum_is_conserved_by_the_smallest_change():
    weights = np.array([1.0, 16.0, 17.0])
    rng = np.random.default_rng(1)
    exact = rng.normal(size=(100, 3))
    exact[:, 2] = -(exact[:, :2] @ weights[:2]) / weights[2]
    x = exact + 1e-5 * rng.normal(size=exact.shape)
    y = constraints.conserved(weights, 1e-3)(x)
    assert np.abs(y @ weights).max() < 1e-13
    assert (np.abs(y - exact).sum(1) <= np.abs(x - exact).sum(1) + 1e-4).all()
    moved = y - x
    np.testing.assert_allclose(np.cross(moved, weights), 0, atol=1e-12)
    x[3] += 1
    assert np.isnan(constraints.conserved(weights, 1e-3)(x)[3]).all()
    y = constraints.conserved([1, 1], 1e-2, total=5)(np.array([[2.01, 3], [2, 4]], np.float32))
    assert y[0].sum() == 5 and np.isnan(y[1]).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: constraints.positive(-1), "tolerance is -1"),
        (lambda: constraints.fractions(np.nan), "tolerance is nan"),
        (lambda: constraints.conserved([0, 0], 1), "not all 0"),
        (lambda: constraints.conserved([1, 2], 1)(np.ones((2, 3))), "2 weights"),
    ],
)
def test_wrong_arguments(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()
