"""Tensors without rows, scalars, and requests of 0 rows."""

import numpy as np
import pytest
from mpi.coupling import couple, python, tensor

from mpiserve.errors import ArgumentError, Code, ModelError

STEPS = 20


def whole(name, *shape, dtype="float64"):
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def field(**settings):
    """One whole field and a scalar; too large for a slot, or not."""
    size = settings.pop("size", 4)
    io = [whole("w", 3, size), whole("a")], [whole("y", size), whole("total")]
    return python("field", *io, rows="none", **settings)


def scale(**settings):
    io = [tensor("x", "float64", 2)], [tensor("y", "float64", 2)]
    return python("scale_some", *io, allow_empty=True, **settings)


@pytest.mark.roles(simulation=2, inference=1)
def test_a_request_is_a_whole_field(world):
    def simulate(session):
        rank, service = session.comm.rank, session.service("field")
        wide = session.service("wide")
        assert (service.rows, service.max_batch_rows) == ("none", 1)
        assert [t.shape for t in service.inputs] == [(3, 4), ()]
        for step in range(STEPS):
            w, a = np.arange(12.0).reshape(3, 4) + step, float(rank)
            y, total = service(w, a)
            np.testing.assert_array_equal(y, a * w.sum(0))
            assert (total.shape, total) == ((), w.sum())
            many = np.arange(3000.0).reshape(3, 1000) * (step + rank)
            requests = [wide.submit(a=a, w=many), wide.submit(many, 2.0)]
            for request, factor in zip(requests, (a, 2.0), strict=True):
                np.testing.assert_array_equal(request.result().y, factor * many.sum(0))
                assert (request.stats["rows"], request.stats["batch_requests"]) == (1, 1)
        out = np.zeros(4), np.zeros(())
        assert service(w, a, out=out).total == w.sum() == out[1]

    services = {"field": field(), "wide": field(size=1000)}
    couple(world, services, simulate, pool={"all": {"services": list(services)}})


@pytest.mark.roles(simulation=2, inference=1)
def test_a_wrong_shape_is_named_with_the_right_one(world):
    def simulate(session):
        service, w = session.service("field"), np.zeros((3, 4))
        for wrong, said in ((w[None], "[1, 3, 4]"), (w[:2], "[2, 4]"), (w.T, "[4, 3]")):
            with pytest.raises(ArgumentError) as caught:
                service(wrong, 1.0)
            assert caught.value.code == Code.ESHAPE
            assert f"input 'w': shape is {said}, the signature says [3, 4]" in str(caught.value)
        with pytest.raises(
            ArgumentError, match=r"input 'a': shape is \[2\], the signature says \["
        ):
            service(w, np.zeros(2))
        with pytest.raises(ModelError, match=r"'y': expected float64 \[4\], got float64 \[5\]"):
            service(w, -1.0)
        np.testing.assert_array_equal(service(w, 1.0).y, np.zeros(4))

    couple(world, {"field": field()}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
def test_fallback_check_buffers_and_reload(world):
    def simulate(session):
        rank, service = session.comm.rank, session.service("field")
        w = np.arange(12.0).reshape(3, 4)
        inputs = service.empty_input(1)
        assert [array.shape for array in inputs] == [(3, 4), ()]
        inputs[0][:], inputs[1][()] = w, 2
        np.testing.assert_array_equal(service(*inputs).y, 2 * w.sum(0))
        with pytest.raises(ModelError, match=r"output 'y', element \[0\] of \[4\]: a value is"):
            service(w * np.inf, 1.0)
        service.fallback(lambda w, a: (np.full(4, a), 7))
        y, total = service(w * np.inf, 5.0)
        assert (list(y), total) == ([5] * 4, 7)
        session.comm.Barrier()
        if not rank:
            session.reload("field")
        session.comm.Barrier()
        request = service.submit(w, 3.0)
        np.testing.assert_array_equal(request.result().y, 3 * w.sum(0))
        assert request.stats["generation"] == 2

    couple(world, {"field": field(check="finite")}, simulate)


@pytest.mark.roles(simulation=3, inference=1)
def test_ranks_without_rows_delay_nobody(world):
    def simulate(session):
        rank, service = session.comm.rank, session.service("scale")
        assert service.allow_empty
        session.comm.Barrier()  # all count in the census
        for step in range(STEPS):
            rows = (rank + step) % 3
            x = np.full((rows, 2), 10.0 * rank + step)
            request = service.submit(x)
            np.testing.assert_array_equal(request.result(), 2 * x)
            assert request.stats["rows"] == rows
            session.comm.Barrier()
        out = np.zeros((0, 2))
        assert service(np.zeros((0, 2)), out=out) is out
        with pytest.raises(ArgumentError) as caught:
            service(np.zeros((0, 2)), out=np.zeros((1, 2)))
        assert caught.value.code == Code.EROWS
        with pytest.raises(ArgumentError, match="at least 1 is needed, unless"):
            session.service("strict")(np.zeros((0, 2)))

    # So long a delay would be seen: of the 20 steps, none waits for a rank that has no rows.
    services = {"scale": scale(max_delay_us=20_000_000), "strict": scale() | {"allow_empty": False}}
    counters = couple(world, services, simulate, pool={"all": {"services": list(services)}})
    if world.role == "inference":
        assert counters["closed_by_delay"] == 0
