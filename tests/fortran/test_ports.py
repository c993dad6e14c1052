"""Example 11 in Fortran: the ports give the answers of the same models in torch."""

import languages
import pytest
from coupling import SERVE

pytestmark = [pytest.mark.takes_long, pytest.mark.timeout(300)]

PORTS = ("from_ftorch", "from_smartredis", "from_phydll")
REFUSED = "refused: service 'column', input 'state': shape is [5, 2], the signature says [rows, 5]"


@pytest.fixture(scope="module")
def ports():
    """Imports torch: not while tests are collected."""
    import ports

    return ports


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ports):
    made = tmp_path_factory.mktemp("ports")
    languages.build_programs("11_moving_in", made, *(f"{name}_f" for name in PORTS))
    ports.write_models(made / "11_moving_in")
    return made / "11_moving_in"


def run(mpiexec, folder, name):
    """Run a port on two simulation ranks, beside its inference rank."""
    job = ["-n", 2, f"./{name}_f", ":", "-n", 1, *SERVE, f"{name}.toml"]
    done = mpiexec(job, cwd=folder, timeout=150)
    assert done.returncode == 0
    return done.stdout


def test_from_ftorch(mpiexec, folder, ports):
    lines = run(mpiexec, folder, "from_ftorch").splitlines()
    assert lines.count(REFUSED) == 1
    ports.check("\n".join(line for line in lines if line != REFUSED), ports.ftorch, folder)


def test_from_smartredis(mpiexec, folder, ports):
    ports.check(run(mpiexec, folder, "from_smartredis"), ports.smartredis, folder)


def test_from_phydll(mpiexec, folder, ports):
    ports.check(run(mpiexec, folder, "from_phydll"), ports.phydll, folder, within=1e-12)
