"""What a request may be: sizes, dtypes, several tensors, several in flight."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, scaling, tensor

from mpiserve.config import DTYPES

pytestmark = [pytest.mark.every_mpi, pytest.mark.roles(simulation=2, inference=1)]

EAGER = 12  # rows of the scaling service that ride in a slot
SIZES = (1, EAGER, EAGER + 1, 100, 1024)


def of_dtype(name, rows, seed):
    """Any bytes that are values of the dtype; compared as bytes, so NaNs may be among them."""
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    data = np.random.default_rng(seed).bytes(rows * 2 * dtype.itemsize)
    array = np.frombuffer(data, np.uint8)
    return (array & 1 if name == "bool" else array).view(dtype).reshape(rows, 2)


def check_scaled(y, x):
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, 2 * x + 1)


def test_sizes_of_both_paths(world):
    def simulate(session):
        service = session.service("scale")
        for rows in (*SIZES, *reversed(SIZES)):
            x = numbers(rows, 4, start=1000 * session.comm.rank)
            check_scaled(service(x), x)

    couple(world, {"scale": scaling(max_batch_rows=1024)}, simulate)


@pytest.mark.parametrize("kind", ["echo", "python"])
def test_every_dtype(world, kind):
    tensors = [tensor(f"a_{name}", name, 2) for name in DTYPES]
    if kind == "echo":
        described = {"backend": "echo", "inputs": tensors}
    else:
        described = python("identity", tensors, tensors)

    def simulate(session):
        service = session.service("all")
        for rows in (1, 3, 4, 5, 500):
            sent = [of_dtype(name, rows, rows + session.comm.rank) for name in DTYPES]
            for before, after in zip(sent, service(*sent), strict=True):
                assert (after.dtype, after.shape) == (before.dtype, before.shape)
                assert after.tobytes() == before.tobytes()

    couple(world, {"all": described}, simulate)


def test_several_inputs_and_outputs_by_name_and_position(world):
    inputs = [tensor("a", "float32", 3), tensor("b", "float32")]
    outputs = [tensor("difference", "float32"), tensor("product", "float32", 3)]

    def simulate(session):
        service = session.service("pair")
        for rows in (1, 2, 200):
            a = numbers(rows, 3).astype(np.float32) + session.comm.rank
            b = numbers(rows, 1).astype(np.float32)[:, 0] - 5
            for result in (service(a, b), service(a, b=b), service(b=b, a=a)):
                assert result._fields == ("difference", "product")
                np.testing.assert_array_equal(result.difference, a.sum(axis=1) - b)
                np.testing.assert_array_equal(result.product, a * b[:, None])

    couple(world, {"pair": python("combine", inputs, outputs)}, simulate)


@pytest.mark.parametrize("rows", [1, 50])
def test_more_in_flight_than_slots_and_waits_in_any_order(world, rows):
    def simulate(session):
        service = session.service("scale")
        asked = [numbers(rows, 4, start=100 * i + session.comm.rank) for i in range(14)]
        requests = [service.submit(x) for x in asked]
        for i in (13, 0, 6, 7, 1, 12, *range(2, 6), *range(11, 7, -1)):
            check_scaled(requests[i].result(), asked[i])

    couple(world, {"scale": scaling(max_batch_rows=128)}, simulate)


def test_arrays_that_are_not_contiguous(world):
    def simulate(session):
        service = session.service("scale")
        for rows in (2, 40):
            whole = numbers(2 * rows, 8, start=session.comm.rank)
            for x in (whole[::2, :4], whole[rows:, ::2], whole[:rows, 3::-1]):
                check_scaled(service(x), x)
            x = np.asfortranarray(whole[:rows, :4])
            check_scaled(service(x), x)

    couple(world, {"scale": scaling()}, simulate)


def test_done_result_again_and_what_is_known_after(world):
    def simulate(session):
        service = session.service("scale")
        for rows in (3, 30):
            x = numbers(rows, 4)
            request = service.submit(x)
            assert request.stats is None
            while not request.done():
                pass
            check_scaled(request.result(), x)
            assert request.result() is request.result()
            stats = request.stats
            assert stats["rows"] == rows <= stats["batch_rows"]
            assert 1 <= stats["batch_requests"] <= 2
            assert stats["total_ns"] >= stats["queue_ns"] >= 0
        assert service.totals()["requests"] == 2
        assert service.totals()["rows"] == 33

    couple(world, {"scale": scaling()}, simulate)


def test_results_stay_when_their_memory_is_used_again(world):
    def simulate(session):
        service = session.service("scale")
        asked = [numbers(rows, 4, start=rows) for rows in (2, 60)]
        kept = [service(x) for x in asked]
        for _ in range(10):
            service(np.zeros((2, 4)))
            service(np.zeros((60, 4)))
        for y, x in zip(kept, asked, strict=True):
            check_scaled(y, x)

    couple(world, {"scale": scaling()}, simulate)


def test_submit_never_waits(world):
    x, y = tensor("x", "float64", 4), tensor("y", "float64", 4)
    gate = Path(os.environ["MPISERVE_TEST_DIR"], "gate")
    described = python("gated", [x], [y], options={"gate": str(gate)})

    def simulate(session):
        service = session.service("gated")
        sizes = (1, 100, 2, 1000, 1, 100, 300, 1, 500, 7)
        asked = [numbers(rows, 4, start=rows) for rows in sizes]
        requests = [service.submit(a) for a in asked]
        assert not any(request.done() for request in requests)
        session.comm.Barrier()
        gate.touch()
        for a, request in zip(asked, requests, strict=True):
            check_scaled(request.result(), a)

    couple(world, {"gated": described}, simulate)
