"""The job scripts are what `jobscript` writes, are right bash, and agree with `plan`."""

import json
import re
import shutil
import subprocess
import sys

import mpijob
import pytest
from examples.scripts import ARGUMENTS, EXAMPLE, ROOT, make

from mpiserve.config import Config
from mpiserve.launch.plan import plan

# In place of every launcher: what it was told, and the files that it was told of.
LAUNCHER = """\
#!/bin/sh
printf '%s\\n' "$*"
for word; do [ ! -f "$word" ] || [ "${word#ranks}" = "$word" ] || cat "$word"; done
"""
FOLDERS = ("SLURM_SUBMIT_DIR", "PBS_O_WORKDIR", "LS_SUBCWD", "FLUX_SUBMIT_DIR")


def planned(name):
    """The plan that a script was made from, and its configuration."""
    words = ARGUMENTS[name].split()
    numbers = [int(words[words.index(flag) + 1]) for flag in ("-n", "--ranks-per-node")]
    config = next(word for word in words if word.endswith(".toml"))
    return plan(Config.load(ROOT / config), *numbers), config


@pytest.fixture
def told(tmp_path):
    """Run a script with stand-ins for launchers and Python; return what they were told."""

    def run(name):
        for launcher in ("srun", "jsrun", "flux", "mpiexec"):
            (tmp_path / launcher).write_text(LAUNCHER)
            (tmp_path / launcher).chmod(0o755)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MPISERVE_PYTHON": "PYTHON", "HOSTFILE": "h"}
        env |= dict.fromkeys(FOLDERS, str(tmp_path))
        command = ["bash", str(ROOT / "jobscripts" / name), "--steps", "9"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def numbers(text):
    """Turn 0-2,5 into a list."""
    ends = [part.split("-") for part in text.split(",")]
    return [rank for end in ends for rank in range(int(end[0]), int(end[-1]) + 1)]


def serving(text):
    """Find the ranks that serve in what a launcher was told."""
    lines = re.findall(r"^([\d,-]+) PYTHON -m mpiserve serve", text, re.M)  # --multi-prog
    if lines:
        return numbers(lines[0])
    if "app 1" in text:  # --erf_input
        return [int(rank) for rank in re.findall(r"^rank: (\d+):.* : app 1$", text, re.M)]
    cases = re.findall(r"^\s*([\d|]+)\) exec", text, re.M)  # Flux
    if cases:
        return [int(rank) for rank in cases[0].split("|")]
    parts = re.findall(r"-n (\d+) ([^:]*)", text)  # mpiexec
    kinds = [kind for count, words in parts for kind in [" serve " in words] * int(count)]
    return [rank for rank, serves in enumerate(kinds) if serves]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_script_is_what_its_first_lines_say(name):
    assert (ROOT / "jobscripts" / name).read_text() == make(name)


def test_every_script_is_tested():
    assert {path.name for path in (ROOT / "jobscripts").iterdir()} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_script_requests_the_resources_of_the_plan(told, name):
    made, config = planned(name)
    text = told(name)
    inference = made.ranks("inference")
    if f"-m mpiserve run {config} {EXAMPLE}/simulate.py --steps 9" in text:
        assert " serve " not in text
    elif "--het-group" in text:
        parts = (ROOT / "jobscripts" / name).read_text().split("#SBATCH hetjob")
        tasks = [int(re.findall(r"--ntasks=(\d+)", part)[0]) for part in parts]
        assert tasks == [count for _, count in made.segments()]
        assert text.index("simulate.py --steps 9") < text.index(f"serve {config}")
    else:
        assert serving(text) == inference
        assert "simulate.py --steps 9" in text or '"$@"' in text
    head = (ROOT / "jobscripts" / name).read_text().splitlines()[1]
    nodes = len(set(made.nodes))
    assert f"{len(made.roles)} ranks on {nodes} nodes" in head
    assert numbers(head.split(": ")[-1].rstrip(".")) == inference


@pytest.mark.takes_long
def test_pbs_script_runs_the_demo(tmp_path):
    ignored = shutil.ignore_patterns("out", "__pycache__")
    shutil.copytree(ROOT / EXAMPLE, tmp_path / EXAMPLE, ignore=ignored)
    env = mpijob.settings() | {"MPISERVE_PYTHON": sys.executable, "PBS_O_WORKDIR": str(tmp_path)}
    command = ["bash", str(ROOT / "jobscripts/pbs-run.pbs"), "--steps", "2", "--no-reference"]
    done = mpijob.run(command, timeout=150, env=env, cwd="/")
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    result = json.loads((tmp_path / EXAMPLE / "out/result.json").read_text())
    assert (result["steps"], result["simulation_ranks"]) == (2, 3)
