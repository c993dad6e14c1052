"""Memory of the window as arrays, and results in arrays of the caller."""

import gc

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, scaling, tensor

from mpiserve.errors import ArgumentError, Code, Error

pytestmark = pytest.mark.roles(simulation=2, inference=1)

ROWS = 500


def test_in_place_arrays_give_what_ordinary_ones_give(world):
    def simulate(session):
        service = session.service("scale")
        x, y = service.empty_input(ROWS), service.empty_output(ROWS)
        assert x.shape == y.shape == (ROWS, 4)
        other, ordinary = service.empty_output(ROWS), np.empty((ROWS, 4))
        for start in range(3):
            x[:] = numbers(ROWS, 4, start=start)
            for out in (y, other, ordinary):
                assert service(x, out=out) is out
                np.testing.assert_array_equal(out, 2 * x + 1)
            np.testing.assert_array_equal(service(x), 2 * x + 1)
            np.testing.assert_array_equal(service(ordinary, out=y), 2 * ordinary + 1)
            np.testing.assert_array_equal(service(x[7:60], out=y[100:153]), 2 * x[7:60] + 1)

    couple(world, {"scale": scaling(max_batch_rows=2 * ROWS)}, simulate)


def test_a_buffer_is_given_back_with_its_last_array(world):
    def simulate(session):
        service = session.service("scale")
        for _ in range(50):  # a lane has 8
            x = service.empty_input(ROWS)
            part, y = x[10:20], service.empty_output(ROWS)
            del x
            part[:] = 3
            assert (service(part, out=y[:10])[0] == 7).all()
            del part, y
        kept = [service.empty_input(2) for _ in range(8)]
        with pytest.raises(Error, match="all 8 buffers are taken") as caught:
            service.empty_input(2)
        assert caught.value.code == Code.ENOMEM
        kept.pop()
        gc.collect()
        kept.append(service.empty_input(2))

    couple(world, {"scale": scaling(max_batch_rows=ROWS)}, simulate)


def test_arrays_of_a_buffer_outlive_the_session(world):
    kept = []

    def simulate(session):
        service = session.service("scale")
        x, y = service.empty_input(ROWS), service.empty_output(ROWS)
        x[:] = 1
        kept.extend((x, service(x, out=y)))

    couple(world, {"scale": scaling(max_batch_rows=ROWS)}, simulate)
    world.comm.Barrier()
    if world.role == "simulation":
        assert (kept[0] == 1).all()
        assert (kept[1] == 3).all()


def test_several_tensors_of_a_buffer(world):
    inputs = [tensor("a", "float32", 3), tensor("b", "float32")]
    outputs = [tensor("difference", "float32"), tensor("product", "float32", 3)]

    def simulate(session):
        service = session.service("combine")
        a, b = service.empty_input(ROWS)
        a[:], b[:] = 2, np.arange(ROWS)
        place = service.empty_output(ROWS)
        result = service(a, b, out=place)
        assert result.difference is place[0]
        np.testing.assert_array_equal(result.difference, 6 - b)
        np.testing.assert_array_equal(result.product, a * b[:, None])
        swapped = service(a[:5], b[5:10])  # not from one row on: copied
        np.testing.assert_array_equal(swapped.difference, 6 - b[5:10])

    couple(world, {"combine": python("combine", inputs, outputs)}, simulate)


def in_turn(session, what):
    """Do something on each rank, one after the other."""
    for rank in range(session.comm.size):
        if rank == session.comm.rank:
            done = what()
        session.comm.Barrier()
    return done


def test_nothing_is_copied_at_the_head(world):
    def simulate(session):
        service = session.service("scale")
        x = in_turn(session, lambda: service.empty_input(ROWS))
        x[:] = 1
        for _ in range(20):
            in_turn(session, lambda: service.submit(x)).result()

    counters = couple(world, {"scale": scaling(max_batch_rows=2 * ROWS)}, simulate)
    if world.role == "inference":
        # Buffers that were taken one after the other are neighbours, and come in their order.
        assert counters["batches_in_place"] >= counters["batches"] / 2


@pytest.mark.parametrize(
    "out",
    [[1.0], np.zeros((4, 3)).T, np.zeros((3, 4)).view(), (np.zeros((3, 4)),)],
    ids=["a list", "a strided array", "a read-only array", "a tuple"],
)
def test_an_out_that_cannot_be_used_is_refused(world, out):
    def simulate(session):
        service = session.service("scale")
        if isinstance(out, np.ndarray):
            out.flags.writeable = False
        with pytest.raises(ArgumentError, match="out must be a writable C-contiguous array"):
            service(numbers(3, 4), out=out)
        with pytest.raises(ArgumentError, match="4 rows"):
            service(numbers(3, 4), out=np.empty((4, 4)))
        assert service(numbers(3, 4)).shape == (3, 4)

    couple(world, {"scale": scaling()}, simulate)
