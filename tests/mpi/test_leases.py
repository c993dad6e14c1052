"""Requests too large for a slot: they keep their order, and share the room without a hang."""

import os

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, scaling, tensor

from mpiserve import Code, Error

pytestmark = [pytest.mark.every_mpi, pytest.mark.roles(simulation=2, inference=1)]


def test_sizes_that_vary_while_others_are_in_flight(world):
    def simulate(session):
        service = session.service("scale")
        random = np.random.default_rng(session.comm.rank)
        waiting = []
        for i in range(300):
            x = numbers(int(random.integers(1, 257)), 4, start=i)
            waiting.append((service.submit(x), x))
            while len(waiting) > random.integers(8):
                request, x = waiting.pop(random.integers(len(waiting)))
                np.testing.assert_array_equal(request.result(), 2 * x + 1)
        for request, x in waiting:
            np.testing.assert_array_equal(request.result(), 2 * x + 1)

    couple(world, {"scale": scaling(max_batch_rows=256, pool_bytes=1)}, simulate)


@pytest.mark.parametrize("large", [1, 200])
def test_requests_of_a_rank_are_taken_in_their_order(world, large):
    described = python("Numbered", [tensor("x", "float64")], [tensor("batch", "int64")])

    def simulate(session):
        service = session.service("numbered")
        requests = [service.submit(np.zeros(1 if i % 5 else large)) for i in range(100)]
        batches = [int(request.result()[0]) for request in requests]
        assert batches == sorted(batches)

    couple(world, {"numbered": described | {"max_batch_rows": 400, "pool_bytes": 1}}, simulate)


@pytest.mark.takes_long
@pytest.mark.timeout(120)
def test_who_waits_for_rows_while_others_get_some_is_not_refused(world):
    """The pool holds one request: the last one waits for three batches, longer than the limit."""
    rows = [tensor("x", "float64")]
    slow = python("Sleeper", rows, rows, options={"seconds": 5.5 / 400}, isolate=False)

    def simulate(session):
        slow = session.service("slow")
        inputs = [numbers(400, start=2 * session.comm.rank + i) for i in range(2)]
        requests = [slow.submit(x) for x in inputs]
        for request, x in zip(requests, inputs, strict=True):
            np.testing.assert_array_equal(request.result(), x)

    couple(world, {"slow": slow | {"max_batch_rows": 400, "pool_bytes": 1}}, simulate)


@pytest.mark.takes_long
@pytest.mark.skipif(os.environ.get("MPISERVE_TRANSPORT") == "rma", reason="buffers are local there")
def test_who_waits_for_rows_that_nobody_gives_back_is_refused(world):
    """A client keeps all rows, and waits outside of the library for one that needs some."""

    def simulate(session):
        scale, x = session.service("scale"), numbers(400, 4)
        keeps = session.comm.rank == 0
        if keeps:
            buffer, request = scale.empty_input(400), scale.submit(x)
        session.comm.barrier()
        if not keeps:
            with pytest.raises(Error, match="no memory for the payload came free") as caught:
                scale(x)
            assert caught.value.code == Code.ENOMEM
        session.comm.barrier()
        if keeps:
            np.testing.assert_array_equal(request.result(), 2 * x + 1)
            buffer[:] = x
            np.testing.assert_array_equal(scale(buffer), 2 * x + 1)
        session.comm.barrier()
        if not keeps:
            np.testing.assert_array_equal(scale(x), 2 * x + 1)

    couple(world, {"scale": scaling(max_batch_rows=400, pool_bytes=1)}, simulate)
