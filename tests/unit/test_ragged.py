"""Ragged batches without MPI: configuration, what a model gets, what is refused."""

import pickle
import sys

import numpy as np
import pytest

from mpiserve import backends
from mpiserve.backends.arrays import room_for
from mpiserve.backends.ragged import batch_of
from mpiserve.config import Config
from mpiserve.errors import ArgumentError, Code, ConfigError, ModelError
from mpiserve.serving.warmup import Warmup

MODEL = """
import numpy as np


def messages(x, edges, factor, counts):
    assert x.flags.writeable and edges.flags.writeable and factor.flags.writeable
    y = 2.0 * x
    np.add.at(y, edges[:, 1], x[edges[:, 0]])
    x[:], edges[:] = 0, 0
    graph = np.arange(len(counts)).repeat(counts)
    sums = np.zeros(len(counts))
    np.add.at(sums, graph, y.sum(1))
    return y * factor[graph, None], sums


def mixes(x, edges, factor, counts):
    return x - x.mean(), factor


def spoils(x, edges, factor, counts):
    y = 2 * x
    y[edges[edges[:, 0] == edges[:, 1], 0]] = np.nan
    y[0, 0] = np.nan
    return y, factor * len(counts)


def ruins(x, edges, factor, counts):
    return 2 * x, factor + (np.nan if len(counts) > 1 else 0)
"""
X = {"name": "x", "dtype": "float64", "shape": ["nodes", 2], "max_shape": [20, 2]}
EDGES = {"name": "edges", "dtype": "int32", "shape": ["edges", 2], "max_shape": [50, 2]}
EDGES |= {"index_of": "nodes"}
FACTOR = {"name": "factor", "dtype": "float64", "shape": []}
FREE = {"name": "x", "dtype": "float64", "shape": ["nodes", -1], "max_shape": [20, 2]}


@pytest.fixture
def table(tmp_path, monkeypatch):
    (tmp_path / "ragged_model.py").write_text(MODEL)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    made = {"backend": "python", "model": "ragged_model:messages", "rows": "ragged"}
    made |= {"max_batch_rows": 8, "inputs": [X, EDGES, FACTOR], "counts": ["nodes"]}
    made |= {"outputs": [X | {"name": "y"}, FACTOR | {"name": "sum"}]}

    def read(**settings):
        data = {"service": {"s": made | settings}}
        return Config.from_dict(data, source="the test", folder=tmp_path).services[0]

    return read


def made(service):
    backend = backends.create(service)
    backend.load()
    return backend


def graph(random, n, m):
    edges = random.integers(0, max(n, 1), (m, 2)).astype(np.int32)
    return random.random((n, 2)), edges, np.float64(n)


def run(backend, *requests):
    """Return the results of each request."""
    service = backend.service
    room = room_for(service, len(requests))
    batch = batch_of(service, requests)
    for array in batch:
        array.flags.writeable = False  # as the broker's memory is
    assert backend.run_batch(batch, room, lambda _: None) is room
    y, sums, counts = room
    assert (counts[:, 0] == [len(x) for x, *_ in requests]).all()
    return [(y[i, : counts[i, 0]], sums[i]) for i in range(len(requests))]


def test_each_request_is_answered_as_alone(table):
    backend, random = made(table()), np.random.default_rng(0)
    for _ in range(20):
        sizes = [
            (int(n), int(random.integers(0, 51)) if n else 0) for n in random.integers(0, 21, 8)
        ]
        requests = [graph(random, *size) for size in sizes]
        for one, (y, total) in zip(requests, run(backend, *requests), strict=True):
            np.testing.assert_array_equal(y, run(backend, one)[0][0])
            assert total == run(backend, one)[0][1]


@pytest.mark.parametrize(
    ("value", "text"), [(-1, r"'edges' \[1, 0\] is -1: the request has 3 nodes"), (3, "is 3: the")]
)
def test_an_index_beyond_its_own_request_is_refused(table, value, text):
    backend, random = made(table()), np.random.default_rng(0)
    x, edges, factor = graph(random, 3, 4)
    edges[1, 0] = value  # a node of the next request, if nobody looked
    with pytest.raises(ArgumentError, match=text):
        run(backend, graph(random, 9, 9), (x, edges, factor), graph(random, 5, 0))


def test_counts_that_disagree_are_refused(table):
    pairs = EDGES | {"name": "pairs"}
    backend = made(table(inputs=[X, EDGES, pairs, FACTOR]))
    x, edges, factor = graph(np.random.default_rng(0), 3, 4)
    with pytest.raises(
        ArgumentError, match="'pairs' has 2 edges, and input 'edges' has 4"
    ) as caught:
        run(backend, (x, edges, edges[:2], factor))
    assert caught.value.code == Code.ESHAPE


def test_warm_up_finds_models_that_mix_requests(table):
    backend = made(table())
    warmup = Warmup(backend, backend.service, None)
    warmup.look()
    warmup.settle()
    assert not (backend.together or backend.copies or backend.native or warmup.remarks)


@pytest.mark.parametrize("name", ["mixes", "spoils", "ruins"])
def test_warm_up_refuses_models_that_mix_requests(table, name):
    backend = made(table(model=f"ragged_model:{name}"))
    with pytest.raises(ModelError, match="depends on the others in its batch"):
        Warmup(backend, backend.service, None).look()


def test_an_example_is_one_request(table, tmp_path):
    x, edges, factor = graph(np.random.default_rng(0), 3, 4)
    np.savez(tmp_path / "one.npz", x=x, edges=edges, factor=factor)
    backend = made(table(warmup="one.npz"))
    Warmup(backend, backend.service, None).look()
    np.savez(tmp_path / "one.npz", x=np.zeros((21, 2)), edges=edges, factor=factor)
    with pytest.raises(ModelError, match=r"expected float64 at most \[20, 2\]"):
        Warmup(backend, backend.service, None).look()


def test_a_table_keeps_the_names_of_dimensions(table):
    service = pickle.loads(pickle.dumps(table()))
    assert [tensor.said for tensor in service.inputs] == [["nodes", 2], ["edges", 2], []]
    assert service.outputs[0].dimension == "nodes" and service.warmup_rows == (1, 8)
    assert service.kind_of_rows(False) == service.kind_of_rows(True) == "ragged"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rows": None}, "named dimensions and index_of need rows = 'ragged'"),
        ({"max_batch_rows": 4096}, "it is the most requests of a batch: say how many, below 4096"),
        ({"split_failed": False}, "one bad request would fail a whole batch"),
        ({"chunk_rows": 3}, "cuts requests, which rows = 'ragged' excludes"),
        ({"fallback": "local"}, "a local model needs fixed shapes"),
        ({"backend": "deepspeed", "tensor_parallel": 2}, "ranks that share a model need fixed"),
        (
            {"backend": "torch", "derivatives": ["vjp", "jacobian"]},
            'a Jacobian of each row needs independent rows, and rows is "ragged"',
        ),
        ({"backend": "torch", "engine": "compiled"}, "not possible with rows = 'ragged'"),
        ({"backend": "torch", "task": "embed"}, "not possible with task"),
        ({"preprocess": "ragged_model:mixes"}, "not possible with preprocess"),
        ({"backend": "onnx", "model": "a.onnx"}, "the backend 'onnx' does not"),
        ({"counts": ["node"]}, r"no input has the dimension 'node' \(did you mean 'nodes'\?\)"),
        ({"inputs": [FACTOR]}, "an input needs a dimension with a name"),
        ({"inputs": [X | {"max_shape": None}]}, "max_shape must say how large 'nodes' can be"),
        ({"inputs": [X | {"shape": [2, "nodes"]}]}, "only the first dimension can have a name"),
        ({"inputs": [FREE]}, "only the first dimension is free, and it has a name"),
        (
            {"inputs": [X, X | {"name": "z", "max_shape": [9, 2]}]},
            "at most 9 here and 20 elsewhere",
        ),
        ({"inputs": [X, EDGES | {"index_of": "n"}]}, "'edges': no input has the dimension 'n'"),
        ({"inputs": [X | {"index_of": "nodes"}]}, "indices are int32 or int64, got float64"),
        ({"outputs": [X | {"shape": ["n", 2]}]}, "'x': no input has the dimension 'n'"),
        ({"outputs": [X | {"max_shape": [30, 2]}]}, "at most 30 here and 20 at an input"),
        ({"outputs": [EDGES]}, "index_of is for inputs"),
        (
            {"inputs": [EDGES | {"shape": ["nodes", 2], "max_shape": [2**29, 2]}], "counts": []}
            | {"outputs": [FACTOR]},
            "batches of 8 requests have too many nodes for int32",
        ),
    ],
)
def test_what_is_not_possible_is_refused(table, settings, text):
    with pytest.raises(ConfigError, match=text):
        table(**settings)
