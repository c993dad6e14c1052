"""A batch waits for those who ask in step, and for nobody else for long."""

import time

import pytest
from mpi.coupling import INFERENCE, couple, numbers, scaling

DELAY = 0.2  # seconds
STEPS = 20
FORGOTTEN = 8  # batches after which a client that does not ask is not waited for

pytestmark = pytest.mark.roles(simulation=3, inference=1)


def delayed(**settings):
    return {"scale": scaling(max_delay_us=int(DELAY * 1e6), **settings)}


@pytest.mark.parametrize("rows", [2, 50])
def test_clients_in_step_share_a_batch_and_wait_for_no_delay(world, rows):
    def simulate(session):
        service = session.service("scale")
        session.comm.Barrier()
        begin = time.monotonic()
        for _ in range(STEPS):
            request = service.submit(numbers(rows, 4))
            request.result()
            assert request.stats["batch_requests"] == 3
            assert request.stats["batch_rows"] == 3 * rows
        assert time.monotonic() - begin < STEPS * DELAY / 2

    counters = couple(world, delayed(), simulate)
    if world.role == INFERENCE:
        assert counters["batches"] == counters["closed_by_census"] == STEPS


@pytest.mark.timeout(60)
def test_a_silent_client_delays_a_few_batches_and_is_counted_again_when_it_asks(world):
    def simulate(session):
        service = session.service("scale")
        session.comm.Barrier()
        for _ in range(STEPS if session.comm.rank < 2 else 0):
            service(numbers(2, 4))
        session.comm.Barrier()
        # It asks again: the first request makes it a client that is waited for.
        if session.comm.rank == 2:
            service(numbers(2, 4))
        session.comm.Barrier()
        request = service.submit(numbers(2, 4))
        request.result()
        assert request.stats["batch_requests"] == 3

    counters = couple(world, delayed(), simulate)
    if world.role == INFERENCE:
        # And once more: the two who wait while the third asks alone.
        assert 1 <= counters["closed_by_delay"] <= FORGOTTEN + 1
        assert counters["closed_by_census"] >= STEPS - FORGOTTEN


def test_a_full_batch_does_not_wait(world):
    def simulate(session):
        service = session.service("scale")
        session.comm.Barrier()
        begin = time.monotonic()
        for _ in range(STEPS if session.comm.rank == 0 else 0):
            service(numbers(16, 4))
        assert time.monotonic() - begin < STEPS * DELAY / 2
        session.comm.Barrier()

    counters = couple(world, delayed(max_batch_rows=16), simulate)
    if world.role == INFERENCE:
        assert counters["batches"] == counters["closed_by_rows"] == STEPS
