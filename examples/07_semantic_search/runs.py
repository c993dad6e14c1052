"""Small simulations, some of which fail; each describes its result in one line."""

from dataclasses import dataclass

import numpy as np

CELLS = 128


@dataclass
class Run:
    """A concentration that flows, spreads and reacts along a line of cells."""

    kind: str  # the expected result, to check the search; the descriptions do not contain it
    courant: float = 0.0  # cells that the flow crosses in a step
    spread: float = 0.0  # diffusion number
    rate: float = 0.0  # of the reaction, per step
    centred: bool = False  # the scheme of the flow: centred, or upwind
    open_end: bool = False  # outflow is lost, instead of entering at the other side
    start: str = "pulse"
    steps: int = 100


RUNS = [
    Run("stable", courant=1.0),
    Run("unstable", courant=1.7),
    Run("unstable", spread=0.8),
    Run("diffused", spread=0.45, steps=4000),
    Run("wiggles", courant=0.2, spread=0.02, centred=True, start="step"),
    Run("wiggles", courant=0.4, spread=0.08, centred=True, start="step", steps=60),
    Run("burnt", spread=0.3, rate=0.08, steps=700),
    Run("steady", spread=0.2, start="uniform"),
    Run("lost", courant=0.9, open_end=True, steps=100),
    Run("lost", courant=0.5, open_end=True, steps=190),
]

QUESTIONS = {
    "Which calculation diverged because of a numerical instability?": "unstable",
    "Where did the solution overshoot and become negative near a sharp edge?": "wiggles",
    "Where did matter escape over the edge?": "lost",
    "Was there a case in which a flame or reaction used up everything?": "burnt",
    "Which run was in equilibrium?": "steady",
    "Where did mixing smooth out the peak?": "diffused",
    "Where was a wave transported undistorted?": "stable",
}


def first(start):
    """Return the concentration at the beginning."""
    x = np.arange(CELLS) / CELLS
    if start == "uniform":
        return np.full(CELLS, 0.5)
    if start == "step":
        return ((x > 0.2) & (x < 0.4)).astype(float)
    return np.exp(-(((x - 0.3) / 0.05) ** 2))


def step(run, u):
    """Advance by one step."""
    left, right = np.roll(u, 1), np.roll(u, -1)
    if run.open_end:
        left[0], right[-1] = 0, u[-1]
    flow = (right - left) / 2 if run.centred else u - left
    return u - run.courant * flow + run.spread * (left - 2 * u + right) + run.rate * u * (1 - u)


def simulate(run):
    """Run, and describe the result in one line."""
    begin = u = first(run.start)
    for n in range(run.steps):
        u = step(run, u)
        if not np.abs(u).max() < 1e3:
            return f"stopped at step {n + 1} because the values grew without bound"
    return describe(begin, u, run.steps)


def describe(begin, u, steps):
    """Describe the most remarkable property of the result, computed from the numbers."""
    peak, mass = u.max() / begin.max(), u.sum() / begin.sum()
    if np.abs(u - begin).max() < 1e-9:
        return f"the state is steady, the concentration is the same after {steps} steps"
    if u.min() < -0.02:
        return f"oscillations beside the front, the lowest concentration is {u.min():.2f}"
    if mass < 0.5:
        return f"{100 * (1 - mass):.0f} percent of the mass left through the outflow boundary"
    if u.min() > 0.9:
        return f"burning ended within {steps} steps, the reactant was consumed completely"
    if peak < 0.5:
        return f"the profile was flattened by diffusion, the peak fell to {100 * peak:.0f} percent"
    return f"the pulse moved along and kept its shape over {steps} steps"
