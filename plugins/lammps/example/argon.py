"""A small potential of atoms: what `pair_style mpiserve` asks a model for.

The energy of an atom depends on the distances to its neighbours within CUTOFF, by a network of a
few smooth features. It and its first two derivatives end at the cutoff, so energy is conserved.
"""

import numpy as np
import torch
from torch import nn

CUTOFF = 2.5  # as in argon.in
FEATURES = 12


class Potential(nn.Module):
    """Energies of atoms, from the vectors to their neighbours."""

    def __init__(self):
        super().__init__()
        centres = torch.linspace(0.85, CUTOFF, FEATURES)
        self.register_buffer("centres", centres)
        self.linear = nn.Linear(FEATURES, 1)
        self.network = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, species, edges, vectors):
        """Return the energy of each node of a graph.

        Args:
            species: Of each node, a number; here there is one kind of atoms.
            edges: Rows of two nodes: an atom, and one of its neighbours.
            vectors: Rows of three: from the first to the second.
        """
        square = (vectors**2).sum(1)
        distance = torch.sqrt(square + 1e-12)  # warm-up runs on zeros
        shape = torch.exp(-(((distance[:, None] - self.centres) / 0.15) ** 2))
        smooth = ending(distance)
        sums = vectors.new_zeros(len(species), FEATURES)
        sums = sums.index_add(0, edges[:, 0], shape * smooth[:, None])
        energies = (self.linear(sums) + self.network(sums))[:, 0]
        wall = 2 * smooth / (distance + 1e-3) ** 12  # is given, so that no atoms meet
        return energies.index_add(0, edges[:, 0], wall)


def ending(distance):
    """Fall from 1 to 0 at the cutoff, where two derivatives are 0 as well."""
    x = (distance / CUTOFF).clamp(max=1)
    return 1 - x**3 * (10 - 15 * x + 6 * x**2)


def build(weights="argon.npz"):
    """Return the trained potential; train.py writes its weights."""
    model = Potential().double()
    with np.load(weights) as file:
        model.load_state_dict({name: torch.from_numpy(file[name]) for name in file.files})
    return model
