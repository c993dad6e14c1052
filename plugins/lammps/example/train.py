"""Train the potential of argon.py on energies and forces of Lennard-Jones atoms.

python train.py [argon.npz]
"""

import sys

import numpy as np
import torch
from argon import CUTOFF, Potential, ending

CELLS, SAMPLES, STEPS = 2, 24, 100


def lennard_jones(species, edges, vectors):
    """Return the energies of atoms, by the potential that is learnt, in its own units."""
    distance = torch.linalg.norm(vectors, dim=1)
    sixth = distance**-6
    energies = vectors.new_zeros(len(species))
    return energies.index_add(0, edges[:, 0], 2 * (sixth**2 - sixth) * ending(distance))


def crystal(density, cells=CELLS):
    """Return positions of a face-centred cubic crystal, and the length of its periodic box."""
    length = cells * (4 / density) ** (1 / 3)
    corners = np.stack(np.meshgrid(*3 * [np.arange(cells)], indexing="ij"), -1).reshape(-1, 1, 3)
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return (corners + basis).reshape(-1, 3) * length / cells, length


def graph(positions, length):
    """Return species, edges and vectors of atoms in a periodic box, longer than the cutoff."""
    shifts = length * np.stack(np.meshgrid(*3 * [[-1, 0, 1]], indexing="ij"), -1).reshape(-1, 3)
    vectors = positions[None, :, None] + shifts - positions[:, None, None]
    square = (vectors**2).sum(-1)
    first, second, shift = np.nonzero((square < CUTOFF**2) & (square > 0))
    arrays = np.zeros(len(positions), int), np.stack([first, second], 1)
    return [torch.from_numpy(array) for array in (*arrays, vectors[first, second, shift])]


def answer(potential, species, edges, vectors, train=False):
    """Return the energies of atoms, and the forces on them."""
    vectors = vectors.detach().requires_grad_()
    energies = potential(species, edges, vectors)
    (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=train)
    forces = gradient.new_zeros(len(species), 3).index_add(0, edges[:, 0], gradient)
    return energies, forces.index_add(0, edges[:, 1], -gradient)


def samples(random, number):
    """Make crystals of several densities, whose atoms have moved.

    Returns:
        One graph of all, the number of its sample for each atom, and the energies of the samples
        and forces of the atoms that are to be learnt.
    """
    graphs = []
    for _ in range(number):
        positions, length = crystal(random.uniform(0.75, 1.0))
        positions += random.normal(0, random.uniform(0.02, 0.08), positions.shape)
        graphs.append(graph(positions, length))
    atoms = len(graphs[0][0])
    shifts = [edges + atoms * i for i, (_, edges, _) in enumerate(graphs)]
    given = [torch.cat([one[0] for one in graphs]), torch.cat(shifts)]
    given.append(torch.cat([vectors for *_, vectors in graphs]))
    energies, forces = answer(lennard_jones, *given)
    return given, energies.detach().reshape(number, -1).mean(1), forces.detach()


def loss(model, given, energies, forces):
    """Return the mean square error of forces, and of the energies of samples by atom."""
    found, pulls = answer(model, *given, train=True)
    scale = 1 + forces.norm(dim=1, keepdim=True)  # close pairs count no more than others
    apart = found.reshape(len(energies), -1).mean(1) - energies
    return (((pulls - forces) / scale) ** 2).mean() + 10 * (apart**2).mean()


def train(seed=1):
    """Return a trained potential."""
    torch.manual_seed(seed)
    data = samples(np.random.default_rng(seed), SAMPLES)
    model = Potential().double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=STEPS, history_size=30, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(model, *data)
        value.backward()
        return value

    optimizer.step(closure)
    return model


def error(model):
    """Return the root mean squares of the forces of new samples, and of their errors."""
    given, _, forces = samples(np.random.default_rng(99), 8)
    apart = answer(model, *given)[1] - forces
    return [float(each.square().mean().sqrt()) for each in (forces, apart)]


def main(path="argon.npz"):
    """Train, say how well, and write the weights."""
    model = train()
    print("forces of new samples: {:.3g}, their error: {:.3g}".format(*error(model)))
    np.savez(path, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
