"""Graphs of any size in one batch: each is answered as alone, and a bad one fails alone."""

import numpy as np
import pytest
from mpi import graphs
from mpi.coupling import INFERENCE, couple, total

from mpiserve.errors import ArgumentError, Code, ModelError

STEPS = 12


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.parametrize(
    "settings", [{"backend": "torch"}, pytest.param({}, marks=pytest.mark.takes_long)]
)
@pytest.mark.timeout(120)
def test_a_network_sees_graphs_of_three_ranks_as_each_alone(world, settings):
    def simulate(session):
        rank, service, answered, most = session.comm.rank, session.service("net"), [], 0
        assert (service.rows, service.max_batch_rows) == ("ragged", 8)
        assert service.largest_inputs == ((60, 4), (150, 2), ())
        random = np.random.default_rng(rank)
        for _ in range(STEPS):
            given = [graphs.graph(random) for _ in range(2)]
            requests = [service.submit(*one) for one in given]
            for one, request in zip(given, requests, strict=True):
                y, mean = request.result()
                assert y.shape == one[0].shape
                answered.append((one, y, mean))
                most = max(most, request.stats["batch_requests"])
        assert session.comm.allreduce(most) > 3  # some shared a batch
        for one in session.comm.gather(answered) or ():  # torch takes seconds to import
            check(one)

    counters = couple(world, {"net": graphs.service("network", **settings)}, simulate)
    requests = total(world, counters, INFERENCE, "requests")
    assert requests == 3 * 2 * STEPS
    assert total(world, counters, INFERENCE, "batches") < 0.7 * requests


def check(answered):
    model = graphs.network()
    for given, y, mean in answered:
        expected, of_graph = graphs.alone(model, *given)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mean, of_graph, rtol=1e-6, atol=1e-6)


def expected(x, edges, scale):
    y, mean = graphs.messages(x, edges, np.array([scale]), np.array([len(x)]))
    return y, mean[0]


# What a request can have that is wrong, and what its error says.
def too_large(x, edges, scale):
    edges[-1, 1] = len(x)
    return (x, edges, scale), rf"'edges' \[{len(edges) - 1}, 1\] is {len(x)}: the request has"


def negative(x, edges, scale):
    edges[0, 0] = -1
    return (x, edges, scale), rf"'edges' \[0, 0\] is -1: the request has {len(x)} nodes, numbered"


def huge(x, edges, scale):
    edges[0, 0] = np.iinfo(np.int64).max
    return (x, edges, scale), r"is 9223372036854775807: the request has"


def of_no_nodes(x, edges, scale):
    return (x[:0], edges, scale), r"the request has 0 nodes, numbered from 0"


def beyond(x, edges, scale):
    x[0, 0] = 1e9
    return (x, edges, scale), "a node beyond the physics"


WRONG = (too_large, negative, huge, of_no_nodes, beyond)


@pytest.mark.roles(simulation=3, inference=1)
@pytest.mark.parametrize("isolate", [True, False])
def test_what_is_wrong_with_a_request_fails_it_alone(world, isolate):
    def simulate(session):
        service, rank, wrong = session.service("net"), session.comm.rank, 0
        random = np.random.default_rng(rank)
        for step in range(3 * STEPS):
            one, text = graphs.graph(random, np.float64, 0), ""
            if len(one[1]) and (step + rank) % 3 == 0:
                one, text = WRONG[random.integers(len(WRONG))](*one)
                wrong += 1
            request = service.submit(*one)
            if text:
                kind = ModelError if "physics" in text else ArgumentError
                with pytest.raises(kind, match=text):
                    request.result()
            else:
                for array, right in zip(request.result(), expected(*one), strict=True):
                    np.testing.assert_allclose(array, right, rtol=1e-14, atol=1e-14)
        assert wrong > 3
        return wrong

    settings = {"backend": "python", "isolate": isolate}
    counters = couple(world, {"net": graphs.service("messages", "float64", **settings)}, simulate)
    if world.role == INFERENCE:
        assert counters["batches"] < counters["requests"]
        assert counters["errors"] > 9


@pytest.mark.roles(simulation=2, inference=1)
def test_tensors_of_a_dimension_must_agree(world):
    table = graphs.service("messages", "float64", backend="python")
    weights = {"name": "w", "dtype": "float64", "shape": ["edges"], "max_shape": [graphs.EDGES]}
    table |= {"inputs": [*table["inputs"][:2], weights], "model": "graphs:weighted"}
    table |= {"outputs": table["outputs"][:1], "counts": [], "warmup": False}

    def simulate(session):
        service = session.service("net")
        x, edges = np.ones((4, graphs.WIDTH)), np.array([[0, 1], [2, 3], [1, 1]])
        for _ in range(STEPS):
            session.comm.Barrier()
            if session.comm.rank:
                text = "input 'w' has 2 edges, and input 'edges' has 3: they are the same rows"
                with pytest.raises(ArgumentError, match=text) as caught:
                    service(x, edges, np.ones(2))
                assert caught.value.code == Code.ESHAPE
            else:
                y = service(x, edges, np.array([1.0, 2, 3]))
                assert y[:, 0].tolist() == [1, 5, 1, 3]
        for given in [(np.ones((61, 4)), edges), (x, np.zeros((151, 2), np.int64))]:
            with pytest.raises(ArgumentError, match="the signature says"):
                service(*given, np.ones(len(given[1])))
        out = np.zeros((4, graphs.WIDTH))
        assert service(x, edges, np.ones(3), out=out) is out
        with pytest.raises(ArgumentError, match=r"the result has \[4, 4\], and the array has"):
            service(x, edges, np.ones(3), out=np.zeros((3, graphs.WIDTH)))

    couple(world, {"net": table}, simulate)


@pytest.mark.roles(simulation=1, inference=2)
def test_models_that_mix_graphs_or_lose_rows(world):
    def simulate(session):
        with pytest.raises(ModelError, match="'ragged', but the answer to a request depends"):
            session.service("mixes")
        service = session.service("loses")
        with pytest.raises(ModelError, match="'y': the batch has 3 nodes, and got 2 rows"):
            service(np.ones((3, graphs.WIDTH)), np.zeros((0, 2), np.int64), 1.0)

    services = {
        "mixes": graphs.service("neighbours", "float64", backend="python"),
        "loses": graphs.service("first", "float64", backend="python", warmup=False),
    }
    couple(world, services, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_the_check_of_a_graph_names_the_element(world):
    def simulate(session):
        service = session.service("net")
        x, edges = np.ones((5, graphs.WIDTH)), np.zeros((0, 2), np.int64)
        assert np.isfinite(service(x, edges, 1.0).y).all()
        x[2, 1] = np.nan
        with pytest.raises(ModelError) as caught:
            service(x, edges, 1.0)
        text = "service 'net', output 'y', element [2, 1] of [5, 4]: a value is nan"
        assert caught.value.text == text

    table = graphs.service("messages", "float64", backend="python", check="finite")
    couple(world, {"net": table}, simulate)
