"""The network of example 01, which learns while the flame burns."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "01_reacting_flow"))
import kinetics
from chemistry import Chemistry


class Learner(Chemistry):
    """Map (temperature, fuel, oxidizer) of each row to their change in one reaction substep."""

    def __init__(self):
        super().__init__()
        torch.nn.init.constant_(self.network[-1].bias, -4.0)  # at first hardly anything burns

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Return the change of each row of `state`."""
        return super().forward(state) - state

    def fit_scales(self, inputs: list[torch.Tensor], _outputs: list[torch.Tensor]) -> None:
        """Set the scaling of the features by the first pairs; the trainer calls this once."""
        temperature, fuel, oxidizer = inputs[0].double().unbind(1)
        as_fuel = oxidizer / kinetics.OXIDIZER_PER_FUEL
        raw = torch.stack(
            [1.0 / temperature, torch.minimum(fuel, as_fuel), torch.maximum(fuel, as_fuel)]
        )
        self.center.copy_(raw.mean(dim=1))
        self.scale.copy_(raw.std(dim=1))


def network() -> torch.nn.Module:
    """Return a network without weights; `coupling.toml` names this function as the model."""
    return Learner()
