"""The reaction substep as a neural network that keeps to the physics."""

from pathlib import Path

import kinetics
import torch
from safetensors import safe_open
from torch import nn

WEIGHTS = Path(__file__).with_name("weights.safetensors")
HIDDEN = 32


class Chemistry(nn.Module):
    """Map (temperature, fuel, oxidizer) of each row to the same after one reaction substep.

    One-step chemistry has one degree of freedom: how much of the limiting reactant is converted.
    The network predicts that fraction, in [0, 1]; the new state follows from it, so mass
    fractions stay bounded and energy and elements are conserved to rounding whatever it says.
    """

    def __init__(self, hidden: int = HIDDEN):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(3, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )
        self.skip = nn.Linear(3, 1, bias=False)
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("scale", torch.ones(3))

    def features(self, temperature, limiting, excess):
        """Return the inputs of the network: inverse temperature and both reactants, scaled."""
        raw = torch.stack([1.0 / temperature, limiting, excess], dim=1)
        return (raw - self.center) / self.scale

    def log_exponent(self, temperature, limiting, excess):
        """Return the logarithm of k, where 1 - exp(-k) is the fraction converted.

        It is close to a straight line in the inverse temperature (Arrhenius), which the skip
        connection carries over its fifteen decades, so the network has only the rest to learn.
        """
        features = self.features(temperature, limiting, excess)
        return (self.network(features) + self.skip(features)).squeeze(1)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Return the rows of `state` after the reaction substep."""
        temperature, fuel, oxidizer = state.unbind(1)
        oxidizer_as_fuel = oxidizer / kinetics.OXIDIZER_PER_FUEL
        limiting = torch.minimum(fuel, oxidizer_as_fuel)
        excess = torch.maximum(fuel, oxidizer_as_fuel)
        exponent = self.log_exponent(temperature, limiting, excess).exp()
        burnt = limiting * -torch.expm1(-exponent)
        return torch.stack(
            [
                temperature + kinetics.HEAT_RELEASE * burnt,
                torch.relu(fuel - burnt),
                torch.relu(oxidizer - kinetics.OXIDIZER_PER_FUEL * burnt),
            ],
            dim=1,
        )


def build(weights: Path = WEIGHTS) -> nn.Module:
    """Return the trained network; `coupling.toml` names this function as the model."""
    module = Chemistry()
    with safe_open(weights, framework="pt") as file:
        if file.metadata() != kinetics.constants():
            raise ValueError(f"{weights.name} was trained for other kinetics: run train.py again")
        module.load_state_dict({name: file.get_tensor(name) for name in sorted(file.keys())})
    return module.eval()
