"""Example 11 in Python and C: the ports give the answers of the same models in torch."""

import subprocess
import sys

import languages
import pytest
from coupling import RUN, SERVE
from gateway_job import Job

pytestmark = [pytest.mark.takes_long, pytest.mark.timeout(300)]

# The port, in a simulation that goes on until the client outside has asked.
SIMULATION = """\
import time
from pathlib import Path
import mpiserve
import from_triton

with mpiserve.open() as session:
    from_triton.ask(session)
    while not Path("stop").exists():
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def ports():
    """Imports torch: not while tests are collected."""
    import ports

    return ports


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ports):
    made = tmp_path_factory.mktemp("ports")
    languages.build_programs("11_moving_in", made, "from_phydll_c")
    ports.write_models(made / "11_moving_in")
    return made / "11_moving_in"


def run(mpiexec, folder, *job):
    done = mpiexec(job, cwd=folder, timeout=150)
    assert done.returncode == 0
    return done.stdout


def test_from_smartredis(mpiexec, folder, ports):
    job = ["-n", 3, *RUN, "from_smartredis.toml", "from_smartredis.py"]
    ports.check(run(mpiexec, folder, *job), ports.smartredis, folder)


def test_from_phydll(mpiexec, folder, ports):
    job = ["-n", 3, *RUN, "from_phydll.toml", "from_phydll.py"]
    ports.check(run(mpiexec, folder, *job), ports.phydll, folder, within=1e-12)


def test_from_phydll_in_c(mpiexec, folder, ports):
    job = ["-n", 2, "./from_phydll_c", ":", "-n", 1, *SERVE, "from_phydll.toml"]
    ports.check(run(mpiexec, folder, *job), ports.phydll, folder, within=1e-12)


def test_a_converted_file_gives_the_same(mpiexec, folder, ports):
    inputs = ["--inputs", "u float64, v float64"]
    command = [sys.executable, "-m", "mpiserve", "convert", "closure.pt", *inputs]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    config = (folder / "from_phydll.toml").read_text().replace("closure.pt", "closure.pt2")
    (folder / "converted.toml").write_text(config)
    job = ["-n", 3, *RUN, "converted.toml", "from_phydll.py"]
    ports.check(run(mpiexec, folder, *job), ports.phydll, folder, within=1e-10)


def test_a_client_of_triton_as_it_is_and_from_inside(mpiexec, folder, ports):
    pytest.importorskip("tritonclient.http")
    (folder / "simulate.py").write_text(SIMULATION)
    command = ["-n", 4, *RUN, "from_triton.toml", "simulate.py"]
    with Job(mpiexec, folder, command, longest=240) as job:
        client = [sys.executable, "triton_client.py", "endpoint.json"]
        asked = subprocess.run(client, cwd=folder, capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr
    ports.check(asked.stdout.replace("outside", "inside"), ports.triton, folder, ranks=1)
    assert job.done.returncode == 0
    answers = [line for line in job.done.stdout.splitlines() if line.startswith("inside ")]
    ports.check("\n".join(answers), ports.triton, folder)
