"""The network that replaces the closure: friction rate and eddy viscosity of a cell."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

WEIGHTS = Path(__file__).parent / "weights.safetensors"

# The range of the training. Both outputs are proportional to the speed, so the network does not
# have to learn that.
DEPTHS, SPEEDS = (0.4, 3.0), (0.0, 4.0)  # m, m/s
WIDTH = 24


class Closure(torch.nn.Module):
    """[depth in m, speed in m/s] to [friction rate in 1/s, eddy viscosity in m2/s]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(1, WIDTH),
            torch.nn.Tanh(),
            torch.nn.Linear(WIDTH, WIDTH),
            torch.nn.Tanh(),
            torch.nn.Linear(WIDTH, 2),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        depth, speed = features[:, :1], features[:, 1:]
        return speed * torch.exp(self.layers((depth - 1) / 2))


def build() -> torch.nn.Module:
    """Load the network; called by the inference rank."""
    module = Closure()
    module.load_state_dict(load_file(WEIGHTS))
    return module
