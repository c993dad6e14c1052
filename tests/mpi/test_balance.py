"""Requests go to the replica that answers first, and no census waits for who has gone there."""

import os
import time

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, numbers, once_in, python, scaling, tensor, total
from mpi4py.MPI import MAX

TRANSPORT = os.environ.get("MPISERVE_TRANSPORT", "shared")
ROW = 0.005  # seconds, of the fast replica
SLOWER = 5.0
FLYING = 8  # requests of each client
LEARN, COUNT = 0.4, 1.2  # seconds
DELAY = 0.2  # seconds
ONE_BY_ONE = 200


def sleeper(**settings):
    x = tensor("x", "float64")
    # It asks MPI for its rank, which a child process cannot.
    return python("Sleeper", [x], [x], max_batch_rows=2, isolate=False, **settings)


def drive(comm, *services):
    """Keep every service busy. Return rows per second and the longest wait in ms, of each."""
    comm.Barrier()
    begin = time.monotonic()
    flying = [[] for _ in services]
    counted, longest = np.zeros(len(services)), np.zeros(len(services))
    while (now := time.monotonic() - begin) < LEARN + COUNT or any(flying):
        for i, service in enumerate(services):
            for request in [request for request in flying[i] if request.done()]:
                request.result()
                flying[i].remove(request)
                counted[i] += LEARN < now < LEARN + COUNT
                longest[i] = max(longest[i], request.stats["total_ns"] / 1e6)
            while now < LEARN + COUNT and len(flying[i]) < FLYING:
                flying[i].append(service.submit(np.ones(1)))
        time.sleep(ROW / 10)
    everywhere = np.zeros_like(counted)
    comm.Allreduce(counted, everywhere)
    comm.Allreduce(longest.copy(), longest, op=MAX)
    return everywhere / COUNT, longest


@pytest.mark.timeout(60)
@pytest.mark.roles(simulation=2, inference=4)
def test_a_fast_and_a_slow_replica_do_what_they_can_do_together(world):
    services = {
        "fast": sleeper(options={"seconds": ROW}),
        "slow": sleeper(options={"seconds": SLOWER * ROW}),
        "both": sleeper(options={"seconds": ROW, "last": SLOWER}, replicas=2),
    }

    def measure(session):
        alone = [session.service(name) for name in ("fast", "slow")]
        (fast, slow), (_, slow_wait) = drive(session.comm, *alone)
        (both,), (wait,) = drive(session.comm, session.service("both"))
        said = f"{fast:.0f} and {slow:.0f} rows/s alone, {both:.0f} together; {wait:.0f} ms"
        print(said, f"at most, {slow_wait:.0f} of the slow one alone")
        assert both >= 0.9 * (fast + slow), said
        assert wait <= slow_wait, said

    def simulate(session):
        once_in(3, lambda: measure(session))

    couple(world, services, simulate)


@pytest.mark.roles(simulation=1, inference=2)
@pytest.mark.parametrize("stickiness", [0.25, 1])
def test_one_that_is_busy_holds_up_nobody_but_who_sticks_to_it(world, stickiness):
    def simulate(session):
        service = session.service("moody")
        long = service.submit(np.full(1, 0.5))
        assert all((service(np.zeros(1)) == 0).all() for _ in range(20))
        assert long.done() == (stickiness == 1)
        assert long.result() == 1

    x = tensor("x", "float64")
    described = python("moody", [x], [x], replicas=2, stickiness=stickiness)
    counters = couple(world, {"moody": described}, simulate)
    served = world.comm.allgather(counters["requests"] if world.role == INFERENCE else 0)
    assert sorted(served) == ([0, 0, 21] if stickiness == 1 else [0, 1, 20])


@pytest.mark.roles(simulation=2, inference=2)
def test_no_census_waits_for_a_client_that_tried_another_replica(world):
    def simulate(session):
        service = session.service("scale")
        session.comm.Barrier()
        for i in range(ONE_BY_ONE):
            rows = numbers(1 + i % 20, 4)  # in the slot, and not
            assert (service(rows) == 2 * rows + 1).all()

    described = scaling(replicas=2, max_delay_us=int(DELAY * 1e6))
    counters = couple(world, {"scale": described}, simulate)
    assert total(world, counters, INFERENCE, "requests") == 2 * ONE_BY_ONE
    # One that asks when the other has ended, or has gone the other way, may wait once.
    assert total(world, counters, INFERENCE, "closed_by_delay") <= 2


@pytest.mark.every_mpi
@pytest.mark.roles(simulation=2, inference=2)
def test_cancelled_requests_are_no_load_and_buffers_stay_at_home(world):
    def simulate(session):
        service = session.service("moody")
        for _ in range(3):
            for request in [service.submit(np.full(1, 0.05)) for _ in range(10)]:
                request.cancel()
        x, y = service.empty_input(60), service.empty_output(60)
        x[:] = 0
        for _ in range(10):
            assert (service(x, out=y) == 0).all()
            assert (service(np.zeros(60)) == 0).all()

    x = tensor("x", "float64")
    counters = couple(world, {"moody": python("moody", [x], [x], replicas=2)}, simulate)
    assert 2 * 20 <= total(world, counters, INFERENCE, "requests") <= 2 * (20 + 30 + 2)
    # Over rma a buffer is a client's own memory, and belongs to no replica.
    if world.role == INFERENCE and TRANSPORT == "shared":
        assert 20 <= counters["requests"] <= 20 + 30 + 2
