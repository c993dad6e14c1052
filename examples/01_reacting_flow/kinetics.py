"""One-step Arrhenius kinetics and its reference integrator.

Fuel + 4 oxidizer (by mass) -> products, with the scales of a preheated hydrocarbon flame: the
temperature is in units of that of the fresh gas, lengths in thermal flame thicknesses, times in
flame times (thickness over the speed of the planar stoichiometric flame).
"""

import math
import warnings

import numpy as np
from scipy.integrate import ODEintWarning, odeint

AIR_OXYGEN = 0.233  # mass fraction of oxidizer in air
OXIDIZER_PER_FUEL = 4.0  # mass of oxidizer that one unit mass of fuel consumes
FUEL_STOICHIOMETRIC = AIR_OXYGEN / (AIR_OXYGEN + OXIDIZER_PER_FUEL)
BURNT_TEMPERATURE = 4.0  # of the stoichiometric mixture; the fresh gas has 1
HEAT_RELEASE = (BURNT_TEMPERATURE - 1.0) / FUEL_STOICHIOMETRIC  # per unit mass of fuel
ZELDOVICH = 10.0
ACTIVATION_TEMPERATURE = ZELDOVICH * BURNT_TEMPERATURE**2 / (BURNT_TEMPERATURE - 1.0)
DAMKOEHLER = 333.4  # makes the speed of the planar stoichiometric flame 1 (found numerically)

REACTION_TIME = 0.06  # one reaction substep; the network is trained for just this duration

RELATIVE_TOLERANCE = 1e-8
ABSOLUTE_TOLERANCE = 1e-10

_RATE = DAMKOEHLER / FUEL_STOICHIOMETRIC / OXIDIZER_PER_FUEL


def constants() -> dict[str, str]:
    """Return the constants of the training, as text for the header of the weights file."""
    return {
        "oxidizer_per_fuel": repr(OXIDIZER_PER_FUEL),
        "heat_release": repr(HEAT_RELEASE),
        "activation_temperature": repr(ACTIVATION_TEMPERATURE),
        "damkoehler": repr(DAMKOEHLER),
        "reaction_time": repr(REACTION_TIME),
    }


def mixture(fuel):
    """Return the fresh gas (temperature, fuel, oxidizer) of a fuel stream mixed with air."""
    fuel = np.asarray(fuel, dtype=float)
    return np.stack([np.ones_like(fuel), fuel, AIR_OXYGEN * (1.0 - fuel)])


def burn(state, progress):
    """Return `state` after the fraction `progress` of its limiting reactant has burnt."""
    temperature, fuel, oxidizer = state
    burnt = progress * np.minimum(fuel, oxidizer / OXIDIZER_PER_FUEL)
    return np.stack(
        [
            temperature + HEAT_RELEASE * burnt,
            fuel - burnt,
            oxidizer - OXIDIZER_PER_FUEL * burnt,
        ]
    )


def rate(temperature, fuel, oxidizer):
    """Return the consumption of fuel per unit time, for arrays."""
    arrhenius = np.exp(-ACTIVATION_TEMPERATURE * (1.0 / temperature - 1.0 / BURNT_TEMPERATURE))
    return _RATE * fuel * oxidizer * arrhenius


def _source(_time, cell):
    """Right-hand side for one cell; scalars, because the integrator calls it a cell at a time."""
    temperature, fuel, oxidizer = cell
    arrhenius = math.exp(-ACTIVATION_TEMPERATURE * (1.0 / temperature - 1.0 / BURNT_TEMPERATURE))
    omega = _RATE * fuel * oxidizer * arrhenius
    return HEAT_RELEASE * omega, -omega, -OXIDIZER_PER_FUEL * omega


def integrate_cell(cell, duration=REACTION_TIME):
    """Return the state of one cell after `duration`, by LSODA, which switches to BDF when stiff."""
    tolerances = {"rtol": RELATIVE_TOLERANCE, "atol": ABSOLUTE_TOLERANCE}
    return odeint(_source, cell, (0.0, duration), tfirst=True, **tolerances)[-1]


def integrate_cells(cells, duration=REACTION_TIME):
    """Return the states `[cells, 3]` after `duration`, one integration per cell.

    Raises:
        ODEintWarning: If the integrator misses its tolerances in a cell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", ODEintWarning)
        return np.array([integrate_cell(cell, duration) for cell in cells]).reshape(-1, 3)
