"""Batches go to the process of a model without Python, and failures come back to it."""

import os

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, python, tensor

from mpiserve.errors import ModelError

RAISES, DIES, SLOW, MANY = -1.0, -2.0, -3.0, 60  # seconds below: longer than C waits
X, Y = tensor("x", "float64", 4), tensor("y", "float64", 4)


def right(service, value, rows=3):
    x = np.full((rows, 4), float(value))
    np.testing.assert_array_equal(service(x, timeout=60), 2 * x)


def simulate(session):
    service, rank = session.service("fragile"), session.comm.rank
    for _ in range(30):  # batches of two ranks end the watch for small batches
        right(service, 1 + rank)
        session.comm.barrier()
    for number in range(MANY):
        right(service, number + rank, 1 + number % 5)
    for value, text in ((RAISES, "ValueError: no good"), (DIES, "killed by SIGKILL")):
        session.comm.barrier()
        if rank == 0:
            with pytest.raises(ModelError, match=text):
                service(np.full((2, 4), value))
        for number in range(MANY):
            right(service, number + rank)
    session.comm.barrier()
    right(service, SLOW if rank else 1)
    for number in range(MANY):
        right(service, number)


@pytest.mark.timeout(120)
@pytest.mark.roles(simulation=2, inference=1)
def test_only_what_does_not_end_well_comes_to_python(world):
    table = python("Fragile", [X], [Y], rows="independent")
    counters = couple(world, {"fragile": table}, simulate)
    if world.role != INFERENCE:
        return
    # Over rma rows that lie in MPI's memory, which the process cannot map, come to Python.
    least = 0 if os.environ.get("MPISERVE_TRANSPORT") == "rma" else MANY
    assert least < counters["engine_batches"] < counters["batches"]
