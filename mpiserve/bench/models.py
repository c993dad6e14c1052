"""The models of the benchmark's services."""

from __future__ import annotations

import faulthandler
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpiserve.bench.deaths import DEATHS

if TYPE_CHECKING:
    import torch

FEATURES, HIDDEN = 64, 256
FATAL = 1000.0  # a row that kills the process of a mortal model by the first of DEATHS; and so on


def identity() -> torch.nn.Module:
    """Make a module that returns its input, to measure the cost of the torch backend."""
    import torch

    return torch.nn.Identity()


def mlp() -> torch.nn.Module:
    """Make the network 64-256-256-64, always with the same weights."""
    from torch import manual_seed, nn

    manual_seed(1)
    first, last = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, FEATURES)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), last).eval()


def small() -> torch.nn.Module:
    """Make the network 8-32-32-8, always with the same weights."""
    from torch import manual_seed, nn

    manual_seed(1)
    first, last = nn.Linear(8, 32), nn.Linear(32, 8)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), last).eval()


def features(rows: int) -> np.ndarray:
    """Make rows for the network."""
    return np.random.default_rng(rows).standard_normal((rows, FEATURES), np.float32)


def die_of(x: float, path: str) -> None:
    """End this process in the way that x says, if it says one, and add the time to a file."""
    if x >= FATAL:
        faulthandler.disable()  # the crash is wanted
        with Path(path).open("a") as file:
            print(time.monotonic(), file=file)
        DEATHS[int(x - FATAL)]()


class Mortal:
    """Returns its input, or dies of it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Look at all rows."""
        die_of(x.max(), self.path)
        return x


def mortal(path: str) -> torch.nn.Module:
    """Make the same as a module of torch."""
    import torch

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            die_of(x.max().item(), path)
            return x

    return Module()


class Nothing:
    """Returns its input."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Do nothing."""
        return x


class Busy:
    """Takes a fixed time, without sleeping, and returns its input."""

    def __init__(self, ms: float) -> None:
        self.seconds = ms / 1000

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Keep the core busy."""
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return x
