"""Requests that are answered one by one, after their batch: held at the head by tickets."""

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, tensor

from mpiserve.errors import ModelError, PeerError

ROWS = [1, 100]  # in the slot, and in leased rows
END = np.inf


def countdown():
    x, y, dropped = (tensor(name, "float64", 2) for name in ("x", "y", "dropped"))
    table = {"backend": "models:Countdown", "inputs": [x], "outputs": [y, dropped]}
    return {"countdown": table | {"warmup": False, "max_batch_rows": 128, "max_delay_us": 100}}


def asked(value, rows):
    x = np.arange(2.0 * rows).reshape(rows, 2)
    x[0, 0] = value
    return x


def check_works(service):
    x = asked(2, 3)
    np.testing.assert_array_equal(service(x).y, 2 * x)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", ROWS)
def test_a_short_request_overtakes_a_long_one(world, rows):
    def simulate(session):
        service = session.service("countdown")
        x = asked(END, rows)
        long = service.submit(x)
        # No more: the slot of the long one is in the way of the fifth request after it.
        short = asked(3, rows)
        np.testing.assert_array_equal(service(short).y, 2 * short)
        assert not long.done()
        service(asked(0, 1))
        np.testing.assert_array_equal(long.result().y, 2 * x)

    counters = couple(world, countdown(), simulate)
    if world.role == INFERENCE:
        assert (counters["requests"], counters["errors"]) == (3, 0)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", ROWS)
def test_a_cancelled_request_is_dropped_at_the_server(world, rows):
    def simulate(session):
        service = session.service("countdown")
        for number in range(1, 3):
            long = service.submit(asked(END, rows))
            check_works(service)  # so it has begun
            long.cancel()
            for _ in range(1000):
                dropped = service(asked(1, 1)).dropped[0, 0]
                if dropped == number:
                    break
            assert dropped == number
        check_works(service)

    couple(world, countdown(), simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_bad_request_costs_itself_and_a_bad_step_all(world):
    def simulate(session):
        service = session.service("countdown")
        x = asked(END, 5)
        long = service.submit(x)
        with pytest.raises(ModelError, match="minus one"):
            service(asked(-1, 5))
        service(asked(0, 1))
        np.testing.assert_array_equal(long.result().y, 2 * x)
        long = service.submit(x)
        with pytest.raises(ModelError, match="minus two"):
            service(asked(-2, 5))
        with pytest.raises(ModelError, match="minus two"):
            long.result()
        check_works(service)

    couple(world, countdown(), simulate)


@pytest.mark.roles(simulation=3, inference=1)
def test_a_rank_that_fails_ends_what_is_held(world):
    def simulate(session):
        service = session.service("countdown")
        if session.comm.rank == 1:
            session.fail("the mesh is tangled")
            return
        with pytest.raises(PeerError, match=r"rank 1 .*the mesh is tangled"):
            service(asked(END, 1 + 99 * session.comm.rank // 2))

    couple(world, countdown(), simulate)


@pytest.mark.roles(simulation=3, inference=1)
def test_many_requests_end_once_each_with_their_own_rows(world):
    def simulate(session):
        service = session.service("countdown")
        random = np.random.default_rng(session.comm.rank)
        for _ in range(12):
            inputs = [asked(random.integers(1, 6), random.integers(1, 100)) for _ in range(6)]
            requests = [service.submit(x + 0) for x in inputs]
            requests[0].cancel()
            for x, request in list(zip(inputs, requests, strict=True))[1:]:
                np.testing.assert_array_equal(request.result().y, 2 * x)
        assert service.totals()["requests"] == 60

    couple(world, countdown(), simulate)
