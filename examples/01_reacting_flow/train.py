"""Train the network of chemistry.py on states integrated by kinetics.py.

python train.py            # a few minutes on 2 cores; writes weights.safetensors
"""

import argparse
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import chemistry
import kinetics
import numpy as np
import torch
from safetensors.torch import save_file

from mpiserve.terminal import Progress

SEED = 20
CHUNK = 1000


def sample(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw states on and around the manifold of flames in lean to rich mixtures.

    A state is a fresh mixture, burnt to some degree, with more heat or less than it should have
    and with reactants added, because they diffuse faster or slower than heat.
    """
    fresh = kinetics.mixture(kinetics.FUEL_STOICHIOMETRIC * rng.uniform(0.3, 1.7, rows))
    progress = np.where(rng.random(rows) < 0.4, rng.random(rows), rng.random(rows) ** 0.35)
    temperature, fuel, oxidizer = kinetics.burn(fresh, progress)
    temperature = np.clip(temperature + 0.25 * rng.standard_normal(rows), 0.98, 4.6)
    room = kinetics.FUEL_STOICHIOMETRIC * 0.15 * np.abs(rng.standard_normal((2, rows)))
    room *= rng.random(rows) < 0.6
    return np.stack([temperature, fuel + room[0], oxidizer + 4.0 * room[1]], axis=1)


def integrate(states: np.ndarray, workers: int) -> np.ndarray:
    """Return the states after one reaction substep, by the reference integrator."""
    chunks = np.split(states, range(CHUNK, len(states), CHUNK))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = pool.map(kinetics.integrate_cells, chunks)
        return np.concatenate(list(tracked(results, "integrating", len(chunks))))


def tracked(items: Iterable, text: str, steps: int) -> Iterator:
    """Yield items, and show the progress."""
    with Progress() as progress:
        progress.begin(text, steps)
        for item in items:
            yield item
            progress.step()


class Data:
    """Inputs of the network, and the conversion that it must learn."""

    def __init__(self, states: np.ndarray, reacted: np.ndarray):
        scaled = states / [1.0, 1.0, kinetics.OXIDIZER_PER_FUEL]
        burnt = (reacted[:, 0] - states[:, 0]) / kinetics.HEAT_RELEASE
        limiting, excess = scaled[:, 1:].min(axis=1), scaled[:, 1:].max(axis=1)
        columns = torch.from_numpy(np.stack([states[:, 0], limiting, excess, burnt]))
        self.temperature, self.limiting, self.excess, self.burnt = columns
        rate = torch.from_numpy(kinetics.rate(*states.T)) * kinetics.REACTION_TIME
        # If hardly anything burns, the integrated conversion is mostly rounding: take the rate.
        fraction = torch.where(rate < 1e-8, rate, self.burnt) / self.limiting
        self.log_exponent = torch.log(-torch.log1p(-fraction.clamp(1e-30, 1 - 1e-9)))

    def error(self, module: chemistry.Chemistry) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the errors of the fuel burnt, over that of a whole flame, and of log exponent."""
        found = module.log_exponent(self.temperature, self.limiting, self.excess)
        burnt = self.limiting * -torch.expm1(-found.exp())
        burnt_error = (burnt - self.burnt) / kinetics.FUEL_STOICHIOMETRIC
        return burnt_error, found - self.log_exponent

    def loss(self, module: chemistry.Chemistry) -> torch.Tensor:
        """Weigh small conversions more, and fix the exponent where it has no effect."""
        burnt_error, log_error = self.error(module)
        weight = 1.0 / (self.burnt / kinetics.FUEL_STOICHIOMETRIC + 0.01)
        return (burnt_error * weight).square().mean() + 1e-4 * log_error.square().mean()


def standardize(module: chemistry.Chemistry, data: Data) -> None:
    """Set the scaling of the network's inputs from the data."""
    raw = torch.stack([1.0 / data.temperature, data.limiting, data.excess])
    module.center.copy_(raw.mean(dim=1))
    module.scale.copy_(raw.std(dim=1))


def fit(module: chemistry.Chemistry, data: Data, rounds: int) -> None:
    """Minimise the loss over all data: first by Adam, then by L-BFGS for the last digits."""
    adam = torch.optim.Adam(module.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 500)
    for _ in tracked(range(500), "Adam", 500):
        adam.zero_grad()
        data.loss(module).backward()
        adam.step()
        schedule.step()
    lbfgs = torch.optim.LBFGS(
        module.parameters(), max_iter=25, history_size=60, line_search_fn="strong_wolfe"
    )

    def closure():
        lbfgs.zero_grad()
        loss = data.loss(module)
        loss.backward()
        return loss

    for _ in tracked(range(rounds), "L-BFGS", rounds):
        lbfgs.step(closure)


def report(module: chemistry.Chemistry, states: np.ndarray, reacted: np.ndarray) -> None:
    """Print the errors of the finished, single-precision network on states it has not seen."""
    with torch.inference_mode():
        found = module(torch.from_numpy(states.astype(np.float32))).numpy()
    error = np.abs(found[:, 0] - reacted[:, 0])
    print(
        f"held-out temperature after one substep: mean error {error.mean():.2e}, "
        f"99.9 % below {np.quantile(error, 0.999):.2e}, largest {error.max():.2e} "
        f"(fresh gas 1, burnt gas {kinetics.BURNT_TEMPERATURE:g})"
    )


def main() -> None:
    """Make the data, train, write the weights and print the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=30000, help="training states")
    parser.add_argument("--rounds", type=int, default=120, help="rounds of L-BFGS, 25 steps each")
    parser.add_argument("--workers", type=int, default=2, help="processes that integrate")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    states = sample(options.rows + options.rows // 4, np.random.default_rng(SEED))
    reacted = integrate(states, options.workers)
    train, held_out = slice(options.rows), slice(options.rows, None)
    module = chemistry.Chemistry().double()
    data = Data(states[train], reacted[train])
    standardize(module, data)
    fit(module, data, options.rounds)
    module.float()
    save_file(module.state_dict(), chemistry.WEIGHTS, metadata=kinetics.constants())
    report(chemistry.build(), states[held_out], reacted[held_out])


if __name__ == "__main__":
    main()
