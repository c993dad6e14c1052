"""Derivatives of a network on ragged batches: those of each request, as if it were alone."""

import logging
import runpy
import sys

import numpy as np
import pytest
import torch

from mpiserve import backends
from mpiserve.backends.arrays import room_for
from mpiserve.backends.ragged import batch_of
from mpiserve.config import Config
from mpiserve.errors import ModelError
from mpiserve.serving.loading import Loader

MODEL = """
import torch


class Springs(torch.nn.Module):
    # Energies of nodes, whose edges are springs, and the sum of each request, times its factor.
    def forward(self, kind, edges, vectors, factor, counts):
        of = edges[:, 0]
        request = torch.repeat_interleave(torch.arange(len(counts)), counts)
        length = torch.tanh((vectors**2).sum(1)) * (1 + kind[edges[:, 1]])
        energy = vectors.new_zeros(len(kind)).index_add_(0, of, length)
        total = vectors.new_zeros(len(counts)).index_add_(0, request, energy)
        return energy, total * factor


class Lonely(Springs):
    # It returns constants where there is nothing to compute.
    def forward(self, kind, edges, vectors, factor, counts):
        if not len(edges):
            return vectors.new_zeros(len(kind)), vectors.new_zeros(len(counts))
        return super().forward(kind, edges, vectors, factor, counts)


class Mixing(Springs):
    # The energies are relative to the mean of the batch.
    def forward(self, kind, edges, vectors, factor, counts):
        energy, total = super().forward(kind, edges, vectors, factor, counts)
        return energy * energy.mean(), total
"""
NODES, EDGES = 12, 40
KIND = {"name": "kind", "dtype": "int32", "shape": ["nodes"], "max_shape": [NODES]}
PAIRS = {"name": "edges", "dtype": "int64", "shape": ["edges", 2], "max_shape": [EDGES, 2]}
VECTORS = {"name": "vectors", "dtype": "float64", "shape": ["edges", 3], "max_shape": [EDGES, 3]}
FACTOR = {"name": "factor", "dtype": "float64", "shape": []}
ENERGY = KIND | {"name": "energy", "dtype": "float64"}


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "springs_model.py").write_text(MODEL)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    table = {"backend": "torch", "model": "springs_model.py:Springs", "rows": "ragged"}
    table |= {"max_batch_rows": 8, "counts": ["nodes"], "derivatives": ["vjp", "jvp"]}
    table |= {"inputs": [KIND, PAIRS | {"index_of": "nodes"}, VECTORS, FACTOR]}
    table |= {"outputs": [ENERGY, FACTOR | {"name": "total"}]}

    def read(**settings):
        return Config.from_dict({"service": {"net": table | settings}}, folder=tmp_path)

    return read


def graph(random):
    n = int(random.integers(0, NODES + 1))
    m = int(random.integers(0, EDGES + 1)) if n else 0
    edges = random.integers(0, n, (m, 2))
    kind, factor = random.integers(0, 2, n).astype(np.int32), np.float64(random.random())
    return kind, edges, random.standard_normal((m, 3)), factor


def answers(service, *requests):
    """Return the outputs of each request of one batch."""
    backend = backends.create(service)
    backend.load()
    room = room_for(service, len(requests))
    *outputs, counts = backend.run_batch(batch_of(service, requests), room, lambda _: None)
    return [
        [
            out[i, : counts[i, j]] if tensor.dimension else out[i]
            for j, (tensor, out) in enumerate(zip(service.outputs, outputs, strict=True))
        ]
        for i in range(len(requests))
    ]


def of_one(folder, graph):
    """Return the network as a function of vectors and factors of one request, and these."""
    springs = runpy.run_path(str(folder / "springs_model.py"))["Springs"]()
    kind, edges, x, factor = (torch.from_numpy(np.asarray(array)) for array in graph)
    count = torch.tensor([len(kind)])
    return lambda *floats: springs(kind, edges, *floats, count), (x, factor[None])


def expected(folder, graph, vectors):
    """Return the outputs and v J of one request, by torch alone."""
    springs, (x, factor) = of_one(folder, graph)
    x, factor = x.requires_grad_(), factor.requires_grad_()
    outputs = springs(x, factor)
    pairs = zip(outputs, vectors, strict=True)
    total = sum((y * torch.from_numpy(np.asarray(v))).sum() for y, v in pairs)
    return [*outputs, *torch.autograd.grad(total, (x, factor))]


def test_the_signature_keeps_the_dimensions(config):
    vjp = config().service["net.vjp"]
    assert vjp.rows == "ragged"
    said = {tensor.name: tensor.said for tensor in (*vjp.inputs[4:], *vjp.outputs)}
    assert said == {
        "vector_energy": ["nodes"],
        "vector_total": [],
        "energy": ["nodes"],
        "total": [],
        "vjp_vectors": ["edges", 3],
        "vjp_factor": [],
    }


def test_products_are_those_of_each_request(config, tmp_path):
    random = np.random.default_rng(3)
    graphs = [graph(random) for _ in range(6)]
    masks = [
        (np.asarray(random.random(len(one[0]))), np.float64(random.random())) for one in graphs
    ]
    service = config().service["net.vjp"]
    found = answers(service, *(one + mask for one, mask in zip(graphs, masks, strict=True)))
    for one, mask, result in zip(graphs, masks, found, strict=True):
        for array, right in zip(result, expected(tmp_path, one, mask), strict=True):
            right = right.detach().numpy().reshape(array.shape)
            np.testing.assert_allclose(array, right, rtol=1e-13, atol=1e-14)


def test_jvp_is_that_of_each_request(config, tmp_path):
    random = np.random.default_rng(4)
    graphs = [graph(random) for _ in range(6)]
    ts = [(random.standard_normal(one[2].shape), np.float64(random.random())) for one in graphs]
    service = config().service["net.jvp"]
    found = answers(service, *(one + t for one, t in zip(graphs, ts, strict=True)))
    for one, t, result in zip(graphs, ts, found, strict=True):
        springs, floats = of_one(tmp_path, one)
        along = tuple(
            torch.from_numpy(np.reshape(a, x.shape)) for a, x in zip(t, floats, strict=True)
        )
        outputs, products = torch.func.jvp(springs, floats, along)
        for array, right in zip(result, (*outputs, *products), strict=True):
            right = right.numpy().reshape(array.shape)
            np.testing.assert_allclose(array, right, rtol=1e-13, atol=1e-14)


def without_edges(random):
    kind, _, _, factor = graph(random)
    return kind, np.zeros((0, 2), np.int64), np.zeros((0, 3)), factor


@pytest.mark.parametrize("kind", ["vjp", "jvp"])
def test_a_constant_for_a_graph_without_edges_has_derivatives_of_zero(config, kind):
    random = np.random.default_rng(6)
    one, other = without_edges(random), graph(random)
    service = config(model="springs_model.py:Lonely").service[f"net.{kind}"]
    vectors = {
        "vjp": lambda graph: (np.ones(len(graph[0])), np.float64(1)),
        "jvp": lambda graph: (np.ones((len(graph[1]), 3)), np.float64(1)),
    }[kind]
    alone = answers(service, one + vectors(one))[0]
    among = answers(service, one + vectors(one), other + vectors(other))[0]
    for a, b in zip(alone, among, strict=True):
        assert not a.any()
        np.testing.assert_array_equal(a, b)


def warm_up(service):
    Loader(None, 0, logging.getLogger("test").info).load(service)


def test_warm_up_takes_an_example_of_the_network(config, tmp_path):
    one = graph(np.random.default_rng(5))
    names = ("kind", "edges", "vectors", "factor")
    np.savez(tmp_path / "one.npz", **dict(zip(names, one, strict=True)))
    for warmup in (True, "one.npz"):
        for kind in ("vjp", "jvp"):
            warm_up(config(warmup=warmup).service[f"net.{kind}"])


@pytest.mark.parametrize("kind", ["vjp", "jvp"])
def test_warm_up_refuses_a_network_that_mixes_requests(config, kind):
    with pytest.raises(ModelError, match="depends on the others in its batch"):
        warm_up(config(model="springs_model.py:Mixing").service[f"net.{kind}"])
