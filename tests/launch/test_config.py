"""A configuration that is wrong: one line on one rank, exit status 2, and nobody hangs."""

from __future__ import annotations

import pytest
from coupling import CONFIG, PYTHON, RUN, SERVE, first_is_quick, write
from coupling import SIMULATION as SIMULATION_THAT_IS_RIGHT

MISSPELT = CONFIG + "max_delay = 100\n"
NO_MODEL = CONFIG.replace('model = "model:twice"\n', "")
REPLICAS = CONFIG + "replicas = 4\n"
TWICE = "[partition]\nranks = [1, 1]\n\n" + CONFIG

# Of the file, what its line must say.
WRONG = {
    "an unknown key": (MISSPELT, "service.twice.max_delay: unknown key"),
    "a missing model": (NO_MODEL, "service.twice.model: missing"),
    "more replicas than ranks": (REPLICAS, "service.twice.replicas: 4 replicas need 4 inference"),
    "a rank listed twice": (TWICE, "partition.ranks: rank 1 is listed twice"),
}

# Leaves with status 0, so that the job's status is that of the inference ranks.
SIMULATION = """\
import mpiserve

try:
    with mpiserve.open() as session:
        session.service("twice")
except (mpiserve.ConfigError, mpiserve.ModelError) as error:
    print(f"the simulation got: {error}", flush=True)
"""


def check(done, text):
    """One line says it, with the file, and the job ends with status 2."""
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("mpiserve")]
    assert len(said) == 1
    assert said[0].startswith(f"mpiserve: c.toml: {text}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", first_is_quick(WRONG))
def test_run(mpiexec, tmp_path, wrong):
    config, text = WRONG[wrong]
    write(tmp_path, config=config)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"])
    check(done, text)
    assert not done.stdout


@pytest.mark.takes_long
@pytest.mark.parametrize("wrong", WRONG)
def test_serve(mpiexec, tmp_path, wrong):
    """The simulation learns of it as well.

    Replicas are counted when the ranks of the other program are known, which is after open:
    no replica can serve then, and a service that cannot be served is a ModelError.
    """
    config, text = WRONG[wrong]
    write(tmp_path, SIMULATION, config)
    done = mpiexec(["-n", 1, PYTHON, "sim.py", ":", "-n", 2, *SERVE, "c.toml"])
    check(done, text)
    assert done.stdout.startswith("the simulation got: ") and text in done.stdout


@pytest.mark.parametrize("program", [RUN, SERVE], ids=["run", "serve"])
def test_a_file_that_is_not_there(mpiexec, tmp_path, program):
    write(tmp_path)
    (tmp_path / "c.toml").unlink()
    script = ["sim.py"] if program is RUN else []
    check(mpiexec(["-n", 2, *program, "c.toml", *script]), "no such file")


def test_a_script_that_is_not_there(mpiexec, tmp_path):
    write(tmp_path)
    done = mpiexec(["-n", 2, *RUN, "c.toml", "other.py"])
    assert done.returncode == 2
    assert done.stderr.count("mpiserve: other.py: no such file") == 1


ABSENT = """
[service.absent]
backend = "python"
model = "model:nowhere"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
"""
BARS = """\
import tqdm

for _ in tqdm.tqdm(range(3), "a bar"):
    pass


def twice(x):
    return 2 * x
"""
LINES = """
import sys
from mpiserve import terminal

with terminal.Progress(shown=rank == 0) as progress:
    progress.begin("work", 100)
    for _ in range(100):
        progress.step()
for stream in (sys.stdout, sys.stderr):
    print("a terminal" if stream.isatty() else "no terminal", file=stream)
"""


def test_missing_files_are_logged_before_models_load(mpiexec, tmp_path):
    """The other services go on. Launchers give ranks a terminal, but nobody looks at it."""
    write(tmp_path, SIMULATION_THAT_IS_RIGHT + LINES, CONFIG + ABSENT)
    (tmp_path / "model.py").write_text(BARS)
    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"])
    lines = done.stderr.splitlines()
    early = [
        at for at, line in enumerate(lines) if "c.toml: service.absent.model: 'model:now" in line
    ]
    ready = [at for at, line in enumerate(lines) if "service twice" in line and "is ready" in line]
    assert early < ready and len(early) == 1
    assert "simulation rank 0 of 1 is right" in done.stdout
    assert "work: step 100 of 100" in done.stdout
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text and "\r" not in text.replace("\r\n", "\n")
        assert "a bar" not in text
