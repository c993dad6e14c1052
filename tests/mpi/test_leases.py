"""Requests too large for a slot: they keep their order, and share the room without a hang."""

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, scaling, tensor

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
