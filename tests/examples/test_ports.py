"""Example 11 in Python: the ports give the answers of the same models in torch."""

import shutil
import subprocess
import sys

import languages
import pytest
from coupling import RUN
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
    made = tmp_path_factory.mktemp("ports") / "11_moving_in"
    shutil.copytree(languages.EXAMPLES / "11_moving_in", made)
    ports.write_models(made)
    return made


@pytest.mark.parametrize("name", ["smartredis", "phydll"])
def test_from(name, mpiexec, folder, ports):
    job = ["-n", 3, *RUN, f"from_{name}.toml", f"from_{name}.py"]
    done = mpiexec(job, cwd=folder, timeout=150)
    assert done.returncode == 0
    within = 1e-12 if name == "phydll" else 1e-5
    ports.check(done.stdout, getattr(ports, name), folder, within=within)


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
