"""The network of example 01, smaller, which learns while the flame burns."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "01_reacting_flow"))
import kinetics
import marquardt
from chemistry import Chemistry

HIDDEN = 16
ALL_BURNS = 8.0  # exp(-exp(8)) is 0; beyond, derivatives would be no numbers
SMALL = 0.01  # of the heat of a whole flame: errors count as shares above, as they are below


class Learner(Chemistry):
    """Map (temperature, fuel, oxidizer) of each row to their change in one reaction substep."""

    def __init__(self):
        super().__init__(HIDDEN)
        torch.nn.init.constant_(self.network[-1].bias, -4.0)  # at first hardly anything burns

    def log_exponent(self, temperature, limiting, excess):
        """Return the logarithm of k, where 1 - exp(-k) is the fraction converted."""
        return super().log_exponent(temperature, limiting, excess).clamp(max=ALL_BURNS)

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


def errors(found, wanted):
    """Return the error of each row: of its heat, as the rest follows from that."""
    heat = wanted[:, 0] / (kinetics.BURNT_TEMPERATURE - 1.0)
    return (found[:, 0] - wanted[:, 0]) / (heat.clamp(min=0.0) + SMALL)


def step(network, optimizer, inputs, outputs):
    """Make a training step; `coupling.toml` names this function."""
    return marquardt.step(network, optimizer, errors, inputs["state"], outputs["change"])
