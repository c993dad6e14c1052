"""What the design promises, whatever the ranks do."""

import os
import time

import numpy as np
import pytest
from mpi.coupling import INFERENCE, SIMULATION, couple, numbers, python, scaling, tensor, total

pytestmark = pytest.mark.every_mpi

TRANSPORT = os.environ.get("MPISERVE_TRANSPORT", "shared")
TIMES = 10
COMPUTING = 1.0  # seconds without a call of the library


def ask(session, times=5):
    service = session.service("scale")
    for i in range(times):
        x = numbers(1 + 30 * (i % 2), 4, start=session.comm.rank)
        np.testing.assert_array_equal(service(x), 2 * x + 1)


@pytest.mark.roles(simulation=3, inference=1)
def test_no_simulation_rank_is_the_target_of_an_operation(world):
    def simulate(session):
        assert session.service("scale").transport == TRANSPORT
        ask(session)

    counters = couple(world, {"scale": scaling()}, simulate)
    operations = total(world, counters, SIMULATION, "rma_operations")
    assert (operations > 0) == (TRANSPORT == "rma")
    for role in (SIMULATION, INFERENCE):
        assert total(world, counters, role, "rma_to_simulation") == 0


@pytest.mark.skipif(TRANSPORT != "rma", reason="only rma needs operations of MPI")
@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("isolate", [True, False])
def test_a_request_needs_few_operations(world, isolate):
    """Put of request and doorbell, Put and Get of rows without room in a slot, a Get that tells
    whether the head lives, and flushes."""

    def simulate(session):
        for rows, needed in ((12, 4), (13, 8)):
            ask_rows(session, rows)  # has a lease for each slot
            before = session._lib.counters()["rma_operations"]
            ask_rows(session, rows)
            after = session._lib.counters()["rma_operations"]  # info() would ask for states, too
            assert after - before == needed * TIMES

    couple(world, {"scale": scaling(isolate=isolate)}, simulate)


def ask_rows(session, rows):
    x = numbers(rows, 4)
    for _ in range(TIMES):
        np.testing.assert_array_equal(session.service("scale")(x), 2 * x + 1)


@pytest.mark.roles(simulation=2, inference=1)
@pytest.mark.parametrize("rows", [2, 50])
def test_a_rank_that_computes_delays_nobody(world, rows):
    def simulate(session):
        service = session.service("scale")
        x = numbers(rows, 4)
        service(x)
        session.comm.Barrier()
        if session.comm.rank == 0:
            request = service.submit(x)  # whose answer it does not look at while it computes
            time.sleep(COMPUTING)
            np.testing.assert_array_equal(request.result(), 2 * x + 1)
            return
        begin = time.monotonic()
        for _ in range(20):
            service(x)
        assert time.monotonic() - begin < COMPUTING

    couple(world, {"scale": scaling(max_delay_us=1000)}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
def test_a_session_can_be_opened_again(world):
    for _ in range(3):
        counters = couple(world, {"scale": scaling()}, ask)
        assert total(world, counters, SIMULATION, "requests") == 10


def check_orders(world):
    def simulate(session):
        assert session.comm.size == world.roles.count(SIMULATION)
        before = world.roles[: world.comm.rank].count(SIMULATION)
        assert session.comm.rank == before, "the order of the world is kept"
        assert world.roles[session.service("scale").head] == INFERENCE
        ask(session)

    counters = couple(world, {"scale": scaling(replicas=2)}, simulate)
    assert total(world, counters, INFERENCE, "requests") == 15


@pytest.mark.roles(simulation=3, inference=2, order="tail")
def test_inference_ranks_at_the_tail(world):
    check_orders(world)


@pytest.mark.roles(simulation=3, inference=2, order="head")
def test_inference_ranks_at_the_head(world):
    check_orders(world)


@pytest.mark.roles(simulation=3, inference=2, order="interleaved")
def test_inference_ranks_in_between(world):
    check_orders(world)


@pytest.mark.roles(simulation=2, inference=1)
def test_requests_of_a_rank_are_taken_in_their_order(world):
    described = python("Numbered", [tensor("x", "float64")], [tensor("batch", "int64")])

    def simulate(session):
        service = session.service("numbered")
        requests = [service.submit(np.zeros(1)) for _ in range(100)]
        batches = [int(request.result()[0]) for request in requests]
        assert batches == sorted(batches)

    couple(world, {"numbered": described | {"max_batch_rows": 400}}, simulate)
