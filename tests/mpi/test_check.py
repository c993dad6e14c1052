"""Rows of results that are no answers: an error, or the fallback for these rows alone."""

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, tensor

from mpiserve.errors import Code, ModelError


def mirrored(**settings):
    """A service that returns its inputs, of which the second one has bounds."""
    tensors = [tensor("a", "float32", 2), tensor("b", "float64")]
    outputs = [tensor("p", "float32", 2), tensor("q", "float64") | {"min": 0, "max": 1e3}]
    return python("identity", tensors, outputs, **settings)


def inputs(rows):
    return numbers(rows, 2).astype(np.float32), numbers(rows)


@pytest.mark.roles(simulation=1, inference=2)
@pytest.mark.parametrize("rows", [6, 200])
def test_rows_that_fail_end_a_request_with_an_error(world, rows):
    def simulate(session):
        service = session.service("checked")
        assert service.checks == {"p": (True, None, None), "q": (True, 0.0, 1000.0)}
        a, b = inputs(rows)
        np.testing.assert_array_equal(service(a, b).p, a)
        a[3, 1], b[5] = np.nan, -1
        with pytest.raises(ModelError) as caught:
            service(a, b)
        text = f"service 'checked', output 'p', row 3: a value is nan (2 of {rows} rows)"
        assert (caught.value.code, caught.value.text) == (Code.EMODEL, text)
        a[3, 1] = 0
        with pytest.raises(ModelError, match="output 'q', row 5: -1 is not within 0 to 1000"):
            service.submit(a, b).result()
        counters = session.info()["counters"]
        assert (counters["failed_rows"], counters["errors"], counters["requests"]) == (3, 2, 3)
        free = session.service("free")
        assert free.checks == {}
        assert np.isnan(free(np.full((1, 4), np.nan))).all(), "any value is an answer"

    x, y = tensor("x", "float64", 4), tensor("y", "float64", 4)
    couple(
        world, {"checked": mirrored(check="finite"), "free": python("scale", [x], [y])}, simulate
    )


@pytest.mark.roles(simulation=2, inference=2)
@pytest.mark.parametrize("rows", [6, 200])
def test_the_fallback_answers_the_rows_that_fail(world, rows):
    def simulate(session):
        service = session.service("checked")
        a, b = inputs(rows)
        wrong = np.array([1, 2, rows - 1])
        a[wrong[0], 0], a[wrong[1], 1], b[wrong[2]] = np.nan, -np.inf, 1e6
        given = []

        @service.fallback
        def physics(a, b):
            given.append((a, b))
            return {"p": np.full_like(a, -7), "q": 3 * b}

        request = service.submit(a, b)
        result = request.result()
        assert request.stats["source"] == "fallback"
        assert (request.stats["rows"], request.stats["fallback_rows"]) == (rows, 3)
        np.testing.assert_array_equal(given[0][0], a[wrong])
        np.testing.assert_array_equal(given[0][1], b[wrong])
        expected_p, expected_q = a.copy(), b.copy()
        expected_p[wrong], expected_q[wrong] = -7, 3 * b[wrong]
        np.testing.assert_array_equal(result.p, expected_p)
        np.testing.assert_array_equal(result.q, expected_q)

        with pytest.raises(ModelError, match="the outputs are in the place of the inputs"):
            service(a, b, out=(a, b))
        a, b = inputs(rows)
        a[:] = np.inf
        np.testing.assert_array_equal(service(a, b).p, np.full_like(a, -7))
        assert len(given[1][0]) == rows
        counters = session.info()["counters"]
        assert (counters["fallbacks"], counters["failed_rows"]) == (2, 6 + rows)
        assert counters["errors"] == 1
        service.fallback(lambda a, b: 1 / 0)
        with pytest.raises(ModelError, match=r"row 0: a value is inf .*failed: ZeroDivisionError"):
            service(a, b)

    couple(world, {"checked": mirrored(check="finite", replicas=2)}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_request_whose_rows_belong_together_is_answered_as_a_whole(world):
    def simulate(session):
        service = session.service("field")
        service.fallback(lambda a, b: (a, np.full_like(b, len(b))))
        a, b = inputs(6)
        b[2] = np.nan
        np.testing.assert_array_equal(service(a, b).q, np.full(6, 6.0))

    couple(world, {"field": mirrored(rows="together")}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats(world, dtype):
    import ml_dtypes

    numpy = np.float16 if dtype == "float16" else ml_dtypes.bfloat16

    def simulate(session):
        service = session.service("short")
        service.fallback(lambda x: np.zeros_like(x))
        x = np.array([1, np.nan, 70, -np.inf]).astype(numpy)
        right = np.array([1, 0, 0, 0]).astype(numpy)
        np.testing.assert_array_equal(service(x), right)

    x, y = tensor("x", dtype), tensor("y", dtype) | {"max": 69.0}
    couple(world, {"short": python("identity", [x], [y], check="finite")}, simulate)
