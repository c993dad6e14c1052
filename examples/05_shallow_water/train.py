"""Train the network on the closure's formula: python train.py (a minute), writes the weights."""

from __future__ import annotations

import numpy as np
import torch
from closure import DEPTHS, SPEEDS, WEIGHTS, Closure
from safetensors.torch import save_file

GRAVITY, MANNING, ELDER = 9.81, 0.05, 5.93  # m/s2, s/m^(1/3), Elder (1959)


def formula(features: np.ndarray) -> np.ndarray:
    """Friction rate (Manning) and longitudinal eddy viscosity (Elder), as shallow_water.f90."""
    depth, speed = features.astype(np.float64).T
    friction = GRAVITY * MANNING**2 * speed / depth ** (4 / 3)
    viscosity = ELDER * depth * np.sqrt(GRAVITY) * MANNING * speed / depth ** (1 / 6)
    return np.stack([friction, viscosity], axis=1)


def sample(n: int) -> np.ndarray:
    """Depths and speeds, spread evenly over the range; the same ones each time."""
    depth = np.linspace(*DEPTHS, n)
    speed = np.linspace(SPEEDS[1] / n, SPEEDS[1], n)
    return np.stack([depth, np.roll(speed, n // 3)], axis=1)


def train(module: torch.nn.Module, features: np.ndarray) -> float:
    """Fit, in double precision, and return the largest relative error."""
    x, y = torch.from_numpy(features), torch.from_numpy(formula(features))
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=4000,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = ((module(x) / y - 1) ** 2).mean()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return float((module(x) / y - 1).abs().max())


def main() -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    module = Closure().double()
    error = train(module, sample(2000))
    print(f"largest relative error: {error:.1e}")
    save_file({name: value.float() for name, value in module.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main()
