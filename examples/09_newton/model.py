"""The rates of a cell: a fast relaxation, driven by a network."""

from __future__ import annotations

import torch

SPECIES, WIDTH = 4, 32


class Rates(torch.nn.Module):
    """[amounts of the species] to [their rates in 1/s]: -k y + g tanh(network(y))."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(SPECIES, WIDTH),
            torch.nn.Tanh(),
            torch.nn.Linear(WIDTH, SPECIES),
        )

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return 40 * torch.tanh(3 * self.layers(y)) - 50 * y


def build() -> torch.nn.Module:
    """Make the network; called by the inference rank. Its weights stand for trained ones."""
    torch.manual_seed(3)
    return Rates().double()
