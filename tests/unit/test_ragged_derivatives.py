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
    n, m = int(random.integers(1, NODES + 1)), int(random.integers(0, EDGES + 1))
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


def expected(folder, graph, vectors):
    """Return the outputs and v J of one request, by torch alone."""
    springs = runpy.run_path(str(folder / "springs_model.py"))["Springs"]()
    kind, edges, x, factor = (torch.from_numpy(np.asarray(array)) for array in graph)
    x, factor = x.requires_grad_(), factor[None].requires_grad_()
    outputs = springs(kind, edges, x, factor, torch.tensor([len(kind)]))
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


def test_jvp_is_the_transposed_of_vjp(config):
    random = np.random.default_rng(4)
    one = graph(random)
    v = random.random(len(one[0])), np.float64(0.5)
    t = random.standard_normal(one[2].shape), np.float64(2)
    vjp = answers(config().service["net.vjp"], one + v)[0][2:]
    jvp = answers(config().service["net.jvp"], one + t)[0][2:]
    one, other = (
        sum((a * b).sum() for a, b in zip(*pair, strict=True)) for pair in ((vjp, t), (jvp, v))
    )
    assert one == pytest.approx(other, rel=1e-13)


def test_warm_up_takes_an_example_of_the_network(config, tmp_path):
    one = graph(np.random.default_rng(5))
    names = ("kind", "edges", "vectors", "factor")
    np.savez(tmp_path / "one.npz", **dict(zip(names, one, strict=True)))
    for warmup in (True, "one.npz"):
        for kind in ("vjp", "jvp"):
            service = config(warmup=warmup).service[f"net.{kind}"]
            model = Loader(None, 0, logging.getLogger("test").info).load(service)
            assert not (model.together or model.copies)
