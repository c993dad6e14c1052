"""Write the models of this example, as the users of the other libraries have them: TorchScript.

python make_models.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn


class Shift(nn.Module):
    """Adds one to each number of a row, and gives the mean of the row, too."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + 1
        return y, y.mean(1)


class Residual(nn.Module):
    """Two convolutions, and the way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.second(torch.relu(self.first(x)))))


class Image(nn.Module):
    """A small residual network: [n, 3, height, width] to the scores of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class Column(nn.Module):
    """The state of 5 levels to its tendency."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.layers(state)


class Pair(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 4, bias=False)
        self.right = nn.Linear(4, 2, bias=False)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.left(a) + b, self.right(a * b)


class Cubic(nn.Module):
    """q = 3 a^3 - b^2, whose derivatives are 9 a^2 and -2 b."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 3 * a**3 - b * b


class Closure(nn.Module):
    """Two fields to two sources, at each node of a mesh, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sources = self.layers(torch.stack((u, v), 1))
        return sources[:, 0], sources[:, 1]


def write(folder: Path) -> None:
    """Write a TorchScript file of each model; their weights stand for trained ones."""
    torch.manual_seed(11)
    for kind in (Shift, Image, Column, Pair, Cubic, Closure):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            torch.jit.script(kind().eval()).save(folder / f"{kind.__name__.lower()}.pt")


if __name__ == "__main__":
    write(Path(__file__).parent)
