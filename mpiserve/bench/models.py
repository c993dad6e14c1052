"""The models of the benchmark's services."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

FEATURES, HIDDEN = 64, 256
FATAL = 13.0  # a row that kills the process of a mortal model


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


def die_of(x: object, path: str) -> None:
    """Kill this process if x is the row that is to do so, and leave the time in a file."""
    if x == FATAL:
        Path(path).write_text(str(time.monotonic_ns()))
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """Returns its input, or dies of it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Look at the first row."""
        die_of(x[0], self.path)
        return x


def mortal(path: str) -> torch.nn.Module:
    """Make the same as a module of torch."""
    import torch

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            die_of(x[0].item(), path)
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
