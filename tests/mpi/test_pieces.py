"""Requests of more rows than a batch: cut into pieces, and one request for who asks."""

import time
from contextlib import suppress

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, scaling, tensor
from mpi.test_rows import FLOATS, rows_of

from mpiserve.errors import (
    ArgumentError,
    Code,
    DeadlineError,
    ModelError,
    QueueFullError,
    RequestTimeout,
)

MOST = 16
SIZES = (MOST + 1, 10 * MOST, 10 * MOST + 3, 999)
SLOW, SHORT = 0.1, 0.05  # seconds: of the model for a piece, of a time-out


def moody(**settings):
    io = [tensor("x", "float64")], [tensor("y", "float64")]
    return python("moody", *io, max_batch_rows=MOST, **settings)


@pytest.mark.roles(simulation=2, inference=1)
def test_it_is_answered_as_one(world):
    def simulate(session):
        service = session.service("scale")
        for rows in SIZES:
            x = numbers(rows, 4, start=1000 * session.comm.rank)
            np.testing.assert_array_equal(service(x), 2 * x + 1)
            out = np.zeros_like(x)
            request = service.submit(x, out=out)
            small = service.submit(x[:3])
            assert request.result() is out
            np.testing.assert_array_equal(out, 2 * x + 1)
            np.testing.assert_array_equal(small.result(), 2 * x[:3] + 1)
            assert request.stats["rows"] == rows
            assert request.stats["batch_rows"] <= MOST
        request = service.submit(x)
        while not request.done():
            pass
        np.testing.assert_array_equal(request.result(), 2 * x + 1)
        assert service(x, out=x) is x  # in the place of its input
        assert x[-1, -1] == 2 * (numbers(SIZES[-1], 4, start=1000 * session.comm.rank)[-1, -1]) + 1

    couple(world, {"scale": scaling(max_batch_rows=MOST)}, simulate)


@pytest.mark.roles(simulation=2, inference=2)
def test_replicas_share_the_pieces(world):
    def simulate(session):
        service = session.service("scale")
        x = numbers(100 * MOST, 4, start=session.comm.rank)
        for _ in range(3):
            np.testing.assert_array_equal(service(x), 2 * x + 1)

    counters = couple(world, {"scale": scaling(max_batch_rows=MOST, replicas=2)}, simulate)
    batches = world.comm.allgather(counters["batches"] if world.role == "inference" else None)
    assert min(n for n in batches if n is not None) > 10


@pytest.mark.roles(simulation=1, inference=1)
def test_one_piece_that_fails_is_the_error_of_the_request(world):
    def simulate(session):
        service = session.service("moody")
        x = np.full(5 * MOST, 0.001)
        x[3 * MOST] = -3
        for _ in range(3):
            with pytest.raises(ModelError, match="negative"):
                service(x)
            np.testing.assert_array_equal(service(np.abs(x[:MOST])), 2 * x[:MOST])
        service.fallback(lambda x: x - 1)
        request = service.submit(x)
        expected = np.r_[2 * x[: 3 * MOST], x[3 * MOST : 4 * MOST] - 1, 2 * x[4 * MOST :]]
        np.testing.assert_array_equal(request.result(), expected)
        stats = request.stats
        assert (stats["source"], stats["fallback_rows"]) == ("fallback", MOST)

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_time_outs_and_cancelling(world):
    def simulate(session):
        service = session.service("moody")
        x = np.full(4 * MOST, SLOW)
        request = service.submit(x)
        with pytest.raises(RequestTimeout):
            request.result(timeout=SHORT)
        np.testing.assert_array_equal(request.result(), 2 * x)
        with pytest.raises(RequestTimeout):
            service(x, timeout=SHORT)
        request = service.submit(x)
        request.cancel()
        assert request.done()
        late = service.submit(x, deadline=SHORT)
        with pytest.raises(DeadlineError):
            late.result()
        np.testing.assert_array_equal(service(np.zeros(2 * MOST)), np.zeros(2 * MOST))

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_what_cannot_be_cut_is_refused(world):
    def simulate(session):
        x = rows_of(0, n=MOST + 1)
        with pytest.raises(ArgumentError, match="its rows belong together") as caught:
            session.service("mix")(x)
        assert caught.value.code == Code.EROWS
        wide = np.zeros((2 * MOST + 1, 4))
        with pytest.raises(ArgumentError, match="overlaps an input"):
            session.service("scale")(wide[:-1], out=wide[1:])
        with pytest.raises(ArgumentError, match="65536 pieces"):
            session.service("one")(np.zeros((2**16 + 1, 4)))

    mix = {"backend": "torch", "model": "row_models:RowMix", **FLOATS, "max_batch_rows": MOST}
    services = {"mix": mix, "scale": scaling(max_batch_rows=MOST)}
    services["one"] = scaling(max_batch_rows=1)
    couple(world, services, simulate, pool={"all": {"ranks": 1, "services": list(services)}})


@pytest.mark.roles(simulation=1, inference=1)
def test_a_version_for_which_rows_belong_together_refuses_pieces(world):
    def simulate(session):
        service, x = session.service("either"), rows_of(0, n=3 * MOST)
        np.testing.assert_array_equal(service(x), 2 * x)
        session.reload("either", "mean", timeout=60)
        with pytest.raises(ArgumentError, match="rows belong together now") as caught:
            service(x)
        assert caught.value.code == Code.EROWS
        np.testing.assert_allclose(service(x[:MOST]), x[:MOST] - x[:MOST].mean(0))

    options = {"arguments": {"name": "{version}"}}
    either = {"backend": "torch", "model": "row_models:module", **FLOATS, "options": options}
    couple(world, {"either": either | {"version": "twice", "max_batch_rows": MOST}}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("on_full", ["wait", "reject"])
def test_each_piece_needs_room_in_the_queue(world, on_full):
    def simulate(session):
        service, x = session.service("moody"), np.full(8 * MOST, SHORT)
        if on_full == "wait":
            np.testing.assert_array_equal(service(x), 2 * x)
        else:
            with pytest.raises(QueueFullError):
                service(x)
        end = time.monotonic() + 30
        while on_full == "reject" and time.monotonic() < end:
            with suppress(QueueFullError):  # pieces of the one before may wait still
                service(np.zeros(MOST))
                break
        np.testing.assert_array_equal(service(np.zeros(MOST)), np.zeros(MOST))

    limits = {"max_queue_rows": MOST, "on_full": on_full}
    couple(world, {"moody": moody(**limits)}, simulate)
