"""Tensors with free dimensions: images of several sizes, graphs, and what does not fit."""

import numpy as np
import pytest
from mpi.coupling import INFERENCE, couple, python

from mpiserve.errors import ArgumentError, Code, ModelError

SIZES = [(48, 32), (5, 7), (1, 1), (48, 3)]
STEPS = 6


def free(name, shape, most, dtype="float32"):
    return {"name": name, "dtype": dtype, "shape": list(shape), "max_shape": list(most)}


def images(**settings):
    """A network whose result has half of the height, and a mean of each channel of its input."""
    return {
        "model": "models:half",
        "inputs": [free("image", (-1, 3, -1, -1), (-1, 3, 48, 32))],
        "outputs": [
            free("y", (-1, 2, -1, -1), (-1, 2, 24, 32)),
            {"name": "mean", "dtype": "float32", "shape": [-1, 3]},
        ],
        "max_batch_rows": 6,
        **settings,
    }


def grow(**settings):
    """Returns as many columns as the first value says."""
    x, y = free("x", (-1, -1), (-1, 4)), free("y", (-1, -1), (-1, 6))
    return python("grow", [x], [y], max_batch_rows=8) | settings


def image(rank, step, k):
    random = np.random.default_rng(100 * rank + 10 * step + k)
    rows, size = 1 + (rank + step) % 3, SIZES[(rank + step + k) % 4]
    return random.random((rows, 3, *size), np.float32)


def check_images(answered):
    """Compare with the model alone; on one rank, since torch takes seconds to import."""
    import torch
    from mpi.models import half

    model = half()
    for array, y, mean in answered:
        with torch.no_grad():
            alone, alone_mean = model(torch.from_numpy(array))
        assert y.shape == alone.shape
        np.testing.assert_allclose(y, alone, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mean, alone_mean, rtol=1e-6, atol=1e-6)


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.parametrize(
    "settings", [{"backend": "torch"}, pytest.param({}, marks=pytest.mark.takes_long)]
)
@pytest.mark.timeout(120)
def test_images_of_four_sizes_are_as_the_model_alone_has_them(world, settings):
    def simulate(session):
        rank, service, answered, most = session.comm.rank, session.service("images"), [], 0
        assert service.inputs[0].shape == (-1, 3, -1, -1)
        assert service.largest_outputs == ((-1, 2, 24, 32), (-1, 3))
        for step in range(STEPS):
            given = [image(rank, step, k) for k in range(4)]
            requests = [service.submit(array) for array in given]
            for array, request in zip(given, requests, strict=True):
                result = request.result()
                assert result.y.flags.owndata
                answered.append((array, *result))
                most = max(most, request.stats["batch_requests"])
        assert session.comm.allreduce(most) > 3  # some shared a batch
        everywhere = session.comm.gather(answered)
        for one in everywhere or ():
            check_images(one)

    couple(world, {"images": images(**settings)}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
def test_what_does_not_fit_is_refused_before_it_is_sent(world):
    def simulate(session):
        service = session.service("grow")
        for shape, said in [((1, 5), r"\[1, 5\]"), ((2, 0), r"\[2, 0\]"), ((1, 1, 1), "1, 1, 1")]:
            with pytest.raises(ArgumentError, match=said) as caught:
                service(np.ones(shape, np.float32))
            assert caught.value.code == Code.ESHAPE
            assert "the signature says [rows, up to 4]" in str(caught.value)
        with pytest.raises(ArgumentError, match="its tensors have free dimensions"):
            service(np.ones((9, 1), np.float32))
        for refused in (lambda: service.empty_input(1), lambda: service.fallback(np.sin)):
            with pytest.raises(ArgumentError, match="has free dimensions"):
                refused()
        assert service(np.full((2, 1), 2, np.float32)).tolist() == [[2, 2], [2, 2]]

    couple(world, {"grow": grow()}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
@pytest.mark.parametrize("isolate", [True, False])
def test_results_of_wrong_shapes_fail_their_requests_alone(world, isolate):
    def simulate(session):
        service, rank = session.service("grow"), session.comm.rank
        for columns in [1, 6, 3]:
            x = np.full((3, 2), columns, np.float32)
            assert service(x).shape == (3, columns)
            session.comm.Barrier()  # else a batch had several of these
        for _ in range(5):  # as one batch, mostly, which is then run again in halves
            x = np.full((2, 2), 7 if rank else 5, np.float32)
            if rank:
                with pytest.raises(
                    ModelError, match=r"'y': expected float32 at most \[\d, 6\], got"
                ):
                    service(x)
            else:
                assert service(x).shape == (2, 5)
            session.comm.Barrier()
        out = np.zeros((1, 3), np.float32)
        assert service(np.full((1, 4), 3, np.float32), out=out) is out
        with pytest.raises(
            ArgumentError, match=r"the result has \[1, 2\], and the array has \[1, 3\]"
        ):
            service(np.full((1, 4), 2, np.float32), out=out)

    couple(world, {"grow": grow(isolate=isolate, max_delay_us=20000)}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
def test_graphs_of_any_size_and_without_edges(world):
    nodes = free("nodes", (-1, 2), (50, 2), "float64")
    edges = free("edges", (-1, 2), (200, 2), "int64")
    y = free("y", (-1, 2), (50, 2), "float64")
    service = python("graph", [nodes, edges], [y], rows="none", allow_empty=True)

    def simulate(session):
        from mpi.models import graph

        random = np.random.default_rng(session.comm.rank)
        for n, m in [(1, 0), (50, 200), (7, 3), (3, 0), (20, 77)]:
            nodes = random.random((n, 2))
            edges = random.integers(0, n, (m, 2))
            np.testing.assert_array_equal(
                session.service("graph")(nodes, edges), graph(nodes, edges)
            )

    couple(world, {"graph": service | {"isolate": True}}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
def test_echo_and_functions_around_a_model(world):
    x = free("x", (-1, -1), (-1, 9), "float64")
    echo = {"backend": "echo", "inputs": [x], "max_batch_rows": 4}
    around = python("identity", [x], [x], preprocess="models:twice", postprocess="models:twice")

    def simulate(session):
        for n in (9, 1, 4):
            array = np.arange(2.0 * n).reshape(2, n)
            np.testing.assert_array_equal(session.service("echo")(array), array)
            np.testing.assert_array_equal(session.service("around")(array), 4 * array)

    services = {"echo": echo, "around": around | {"max_batch_rows": 4}}
    counters = couple(world, services, simulate, pool={"all": {"services": list(services)}})
    assert world.role != INFERENCE or counters["errors"] == 0
