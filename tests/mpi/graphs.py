"""Graph networks for services with ragged batches, and the same on one graph, to compare with."""

import time

import numpy as np

NODES, EDGES, WIDTH = 60, 150, 4


def service(model, dtype="float32", **settings):
    """A network of nodes, edges and a number for the graph; its answer has both kinds."""
    nodes = {"dtype": dtype, "shape": ["nodes", WIDTH], "max_shape": [NODES, WIDTH]}
    edges = {"dtype": "int64", "shape": ["edges", 2], "max_shape": [EDGES, 2]}
    return {
        "model": f"graphs:{model}",
        "rows": "ragged",
        "max_batch_rows": 8,
        "max_delay_us": 20000,
        "inputs": [
            {"name": "x", **nodes},
            {"name": "edges", **edges, "index_of": "nodes"},
            {"name": "scale", "dtype": dtype, "shape": []},
        ],
        "outputs": [{"name": "y", **nodes}, {"name": "mean", "dtype": dtype, "shape": [WIDTH]}],
        "counts": ["nodes"],
        **settings,
    }


def graph(random, dtype=np.float32, least=1):
    """A random graph, of any size; now and then without edges or nodes."""
    n = int(random.choice([random.integers(least, NODES + 1), random.integers(least, 4), NODES]))
    m = int(random.choice([0, random.integers(0, EDGES + 1), EDGES])) if n else 0
    x = random.standard_normal((n, WIDTH)).astype(dtype)
    return x, random.integers(0, max(n, 1), (m, 2)), dtype(random.random())


def network():
    """Two steps of message passing, and the mean of the nodes of each graph."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.message = nn.Sequential(nn.Linear(2 * WIDTH, 16), nn.Tanh(), nn.Linear(16, WIDTH))
            self.update = nn.Sequential(nn.Linear(2 * WIDTH, 16), nn.Tanh(), nn.Linear(16, WIDTH))

        def forward(self, x, edges, scale, counts):
            graph = torch.repeat_interleave(torch.arange(len(counts)), counts)
            source, target = edges[:, 0], edges[:, 1]
            for _ in range(2):
                messages = self.message(torch.cat([x[source], x[target]], 1))
                sums = torch.zeros_like(x).index_add_(0, target, messages)
                x = x + scale[graph, None] * self.update(torch.cat([x, sums], 1))
            sums = x.new_zeros(len(counts), WIDTH).index_add_(0, graph, x)
            return x, sums / counts.clamp(min=1)[:, None]

    torch.manual_seed(0)
    return Network()


def alone(model, x, edges, scale):
    """Run the network of torch on one graph."""
    import torch

    scale, counts = torch.tensor([scale], dtype=torch.float32), torch.tensor([len(x)])
    with torch.no_grad():
        y, mean = model(torch.from_numpy(x), torch.from_numpy(edges), scale, counts)
    return y.numpy(), mean.numpy()[0]


def messages(x, edges, scale, counts):
    """The same in numpy, without weights; a graph that begins with 1e9 cannot be computed."""
    graph = np.arange(len(counts)).repeat(counts)
    if (x[:, 0] == 1e9).any():
        raise ValueError("a node beyond the physics")
    y = x * scale[graph, None]
    np.add.at(y, edges[:, 1], x[edges[:, 0]])
    mean = np.zeros((len(counts), x.shape[1]), x.dtype)
    np.add.at(mean, graph, y)
    return y, mean


def neighbours(x, edges, scale, counts):
    """Forgets which graph a node is of."""
    y, mean = messages(x, edges, scale, counts)
    return y - y.mean(), mean


def first(x, edges, scale, counts):
    """Returns a node too few."""
    y, mean = messages(x, edges, scale, counts)
    return y[:-1], mean


def weighted(x, edges, weights):
    """Edges with a weight."""
    y = x.copy()
    np.add.at(y, edges[:, 1], weights[:, None] * x[edges[:, 0]])
    return y


class Versioned:
    """As `messages`, times its version; it sleeps for each graph of a batch."""

    def __init__(self, version, seconds=0.0):
        self.version, self.seconds = float(version), seconds

    def __call__(self, x, edges, scale, counts):
        time.sleep(self.seconds * len(counts))
        y, mean = messages(x, edges, scale, counts)
        return self.version * y, self.version * mean
