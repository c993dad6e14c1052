"""A network that knows half of the states: with its uncertainty the other half is the physics'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coupling import RUN, first_is_quick, write
from safetensors.torch import save_file

LIMIT = 0.01  # of the error, with the gate; the field is of the order of 1

NETS = """\
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(2, 200)
        self.last = torch.nn.Linear(200, 1)

    def features(self, x):
        return torch.tanh(self.hidden(x))

    def forward(self, x):
        return self.last(self.features(x))
"""

PHYSICS = """\
import numpy as np

def physics(x):
    return np.sin(3 * x[:, :1]) - x[:, :1] * x[:, 1:]
"""

CONFIG = """\
[service.net]
backend = "torch"
model = "nets:Net"
engine = "eager"
options = { weights = "0.safetensors" }
inputs = [{ name = "x", dtype = "float32", shape = [-1, 2] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 1] }]
rows = "independent"
[service.net.uncertainty]
"""
METHODS = {
    "ensemble": 'method = "ensemble"\nlimit = 0.005\nweights = ["1.safetensors", "2.safetensors"]',
    "distance": 'method = "distance"\nlimit = 1.5\ndata = "known.npz"',
}

# The first number of a state grows from -1 ... -0.2 to 0.2 ... 1; the network knows it below 0.
SIMULATION = f"""\
import sys

import mpiserve
{PHYSICS}
DT, STEPS = 0.02, 60

def run(rate):
    x = np.random.default_rng(1).uniform(-1, 1, (200, 2)).astype(np.float32)
    x[:, 0] = 0.4 * x[:, 0] - 0.6
    states = []
    for _ in range(STEPS):
        states.append(x.copy())
        x = x + DT * np.hstack([np.ones_like(x[:, :1]), rate(x)])
    return np.array([*states, x])

with mpiserve.open() as session:
    net, trusted = session.service("net"), []

    def gated(x):
        request = net.submit(x)
        rates = request.result()
        trusted.append(request.trusted.copy())
        return rates

    runs = {{"right": run(physics), "alone": run(net)}}
    net.fallback(lambda x: physics(x).astype(np.float32))
    np.savez("runs.npz", gated=run(gated), trusted=trusted, **runs)
"""


def train(folder, seed):
    """Fit the last layer of a network with random features to the half that it knows."""
    names = {}
    exec(NETS + PHYSICS, names)
    torch.manual_seed(seed)
    network = names["Net"]().double()
    x = torch.rand(4000, 2, dtype=torch.float64) * torch.tensor([1.05, 6.0])
    x -= torch.tensor([1.0, 3.0])
    with torch.no_grad():
        network.hidden.weight.mul_(3)
        features = torch.hstack([network.features(x), torch.ones(len(x), 1)])
        wanted = torch.from_numpy(names["physics"](x.numpy()))
        eye = 1e-4 * torch.eye(features.shape[1], dtype=torch.float64)
        found = torch.linalg.solve(features.T @ features + eye, features.T @ wanted)
        network.last.weight.copy_(found[:-1].T)
        network.last.bias.copy_(found[-1])
    save_file(network.float().state_dict(), folder / f"{seed}.safetensors")
    return x.numpy()


@pytest.mark.parametrize("method", first_is_quick(METHODS))
def test_what_a_network_does_not_know_is_right_with_the_gate_and_wrong_without(
    mpiexec, tmp_path, method
):
    write(tmp_path, SIMULATION, CONFIG + METHODS[method])
    (tmp_path / "nets.py").write_text(NETS)
    known = [train(tmp_path, seed) for seed in range(3)]
    np.savez(tmp_path / "known.npz", x=known[0].astype(np.float32))
    assert mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"]).returncode == 0
    with np.load(tmp_path / "runs.npz") as runs:
        errors = {key: np.abs(runs[key] - runs["right"])[..., 1] for key in ("alone", "gated")}
        trusted, known = runs["trusted"], runs["gated"][:-1, :, 0] < 0
    print({key: error.max() for key, error in errors.items()})
    assert errors["gated"].max() < LIMIT
    assert errors["alone"][:-1][known].max() < LIMIT, "it knows that half"
    assert errors["alone"].max() > 5 * LIMIT, "without the gate"
    assert trusted[known].mean() > 0.9 and trusted[~known].mean() < 0.3
