"""A network of messages on graphs, for simulations in C and in Fortran: in batches, and alone."""

MODELS = """\
import numpy as np

random = np.random.default_rng(1)
SHAPES = (8, 8), (8, 4), (8, 4)
A, B, C = (random.standard_normal(shape).astype(np.float32) / 2 for shape in SHAPES)


def network(x, edges, scale, counts):
    graph = np.arange(len(counts)).repeat(counts)
    source, target = edges[:, 0], edges[:, 1]
    for _ in range(2):
        messages = np.tanh(np.concatenate([x[source], x[target]], 1) @ A) @ B
        sums = np.zeros_like(x)
        np.add.at(sums, target, messages)
        x = x + scale[graph, None] * np.tanh(np.concatenate([x, sums], 1) @ C)
    total = np.zeros((len(counts), 4), np.float32)
    np.add.at(total, graph, x)
    return x, total


def alone(x, edges, scale):
    y, total = network(x, edges, scale[None], np.array([len(x)]))
    return y, total[0]
"""

TABLE = """\
[service.{name}]
backend = "python"
model = "models:{name}"
{rows}
inputs = [
  {{ name = "x", dtype = "float32", shape = [{nodes}, 4], max_shape = [50, 4] }},
  {{ name = "edges", dtype = "int32", shape = [{edges}, 2], max_shape = [120, 2]{index} }},
  {{ name = "scale", dtype = "float32", shape = [] }},
]
outputs = [
  {{ name = "y", dtype = "float32", shape = [{nodes}, 4], max_shape = [50, 4] }},
  {{ name = "total", dtype = "float32", shape = [4] }},
]
"""

RAGGED = 'rows = "ragged"\ncounts = ["nodes"]\nmax_batch_rows = 16\nmax_delay_us = 20000'
CONFIG = "\n".join(
    [
        TABLE.format(
            name="network",
            rows=RAGGED,
            nodes='"nodes"',
            edges='"edges"',
            index=', index_of = "nodes"',
        ),
        TABLE.format(
            name="alone", rows='rows = "none"\nallow_empty = true', nodes=-1, edges=-1, index=""
        ),
        '[pool.all]\nservices = ["network", "alone"]\n',
    ]
)
# What both say of the graph whose edge goes to a node of nobody.
WRONG = "input 'edges' [2, 1] is 7: the request has 7 nodes, numbered from 0"
