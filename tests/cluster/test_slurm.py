"""The job scripts under a real Slurm of two hosts, and how its jobs end."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import chrome_trace
import mpijob
import pytest
from cluster.conftest import long, need, short_folder
from cluster.hosts import Hosts, missing
from cluster.slurm import Slurm
from cluster.slurm import missing as no_slurm
from cluster.test_spares import SIMULATION as KILLS
from cluster.test_spares import SPARED, VICTIM
from coupling import CONFIG, MODEL, RUN, SIMULATION, is_mpich, lines, right, write
from jobs import ROOT

from mpiserve.observe import trace
from mpiserve.tools import trace as program

EXAMPLE = "examples/01_reacting_flow"
SCRIPTS = [  # and how many ranks simulate
    ("slurm-run.sbatch", 3),
    ("slurm-gpu.sbatch", 4),
    ("slurm-multi-prog.sbatch", 4),
    ("slurm-het.sbatch", 2),
]
TWO_REPLICAS = CONFIG + "replicas = 2\n"
CONFIGS = {
    "coupling.toml": '[partition]\nplacement = "tail"\n' + CONFIG,
    "per_node.toml": '[partition]\nplacement = "per-node"\nper_node = 1\n' + TWO_REPLICAS,
    "dedicated.toml": '[partition]\nplacement = "dedicated"\n' + TWO_REPLICAS,
}
# A line for each answer, until somebody ends it.
ENDLESS = """\
import json

import mpiserve
import numpy as np

with mpiserve.open() as session, open(f"log.{session.comm.rank}", "w", buffering=1) as log:
    twice = session.service("twice")
    step = 0
    while True:
        y = twice(np.full((8, 3), step, np.float32))
        step += 1
        log.write(json.dumps({"step": step, "y": y.tolist()}) + "\\n")
"""


@pytest.fixture(scope="module")
def slurm():
    need(missing() or no_slurm())
    with (
        short_folder() as folder,
        Hosts(["n1", "n2"], folder / "hosts") as hosts,
        Slurm(hosts, folder / "slurm") as made,
    ):
        yield made


@pytest.fixture
def environment():
    own = {"MPISERVE_PYTHON": sys.executable, "MPISERVE_PMI": "pmi2" if is_mpich() else "pmix"}
    settings = mpijob.settings() | {"MPISERVE_TRANSPORT": "auto"} | own
    settings.pop("PYTHONSAFEPATH")  # a simulation finds the modules beside it
    return settings


def script(name):
    return str(ROOT / "jobscripts" / name)


# MPICH 5.0.2 with UCX (its wheel) publishes 4 KiB of memory, its address and what lies behind it,
# in lines that Slurm's PMI reads 1024 bytes of. Where that memory is dense a line is longer, and
# MPI_Init fails or hangs: docs/guide/launch.md.
LINE_TOO_LONG = "value not properly terminated in client request"


def submit_until(slurm, what, *args, cwd, **options):
    """Submit a job and give what(job), again if MPI did not start for that reason."""
    for _ in range(3):
        job = slurm.submit(*args, cwd=cwd, **options)
        result = what(job)
        log = cwd / "job.log"
        if not (is_mpich() and log.exists() and LINE_TOO_LONG in log.read_text()):
            break
        slurm.ask("scancel", job)
        slurm.wait(job, 30)
    return result


def processes(slurm):
    """What runs on the hosts beside Slurm itself."""
    daemons = ("slurmctld", "slurmd", "slurmscriptd", "munged")
    every = [line for name in slurm.hosts.names for line in slurm.hosts.processes(name)]
    return [line for line in every if not any(daemon in line for daemon in daemons)]


def gone(slurm, seconds=20):
    """Wait until nothing of a job runs any more; give what does."""
    deadline = time.monotonic() + seconds
    while (left := processes(slurm)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.takes_long
@pytest.mark.parametrize(("name", "simulation_ranks"), SCRIPTS)
def test_script_starts_the_ranks_of_its_plan(slurm, environment, tmp_path, name, simulation_ranks):
    folder = tmp_path / EXAMPLE
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "simulate.py").write_text(SIMULATION)
    for file, text in CONFIGS.items():
        (folder / file).write_text(text)
    state = submit_until(
        slurm, lambda job: slurm.wait(job, 60), script(name), env=environment, cwd=tmp_path
    )
    log = (tmp_path / "job.log").read_text()
    print(log)
    assert state == "COMPLETED"
    assert [line for line in lines(log) if "is right" in line] == right(simulation_ranks)
    assert not gone(slurm)


@long
@pytest.mark.timeout(150)
@pytest.mark.parametrize(("name", "simulation_ranks"), SCRIPTS)
def test_script_runs_the_demo(slurm, environment, tmp_path, name, simulation_ranks):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    arguments = ("--steps", "4", "--no-reference", "--no-picture", "--out", str(tmp_path))
    state = submit_until(
        slurm,
        lambda job: slurm.wait(job, 120),
        *(script(name), *arguments),
        env=environment,
        cwd=tmp_path,
    )
    print((tmp_path / "job.log").read_text())
    assert state == "COMPLETED"
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["steps"], result["simulation_ranks"]) == (4, simulation_ranks)


def start_endless(slurm, environment, folder, *flags):
    """Submit a job that ends by nothing of its own, and wait until it answers."""
    write(folder, ENDLESS)
    text = (ROOT / "jobscripts/slurm-run.sbatch").read_text()
    text = text.replace(f"{EXAMPLE}/coupling.toml", "c.toml").replace(f"{EXAMPLE}/simulate", "sim")
    (folder / "job.sbatch").write_text(text)
    logs = [folder / f"log.{rank}" for rank in range(3)]

    def answers(job):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if all(log.exists() and log.stat().st_size > 1000 for log in logs):
                return job
            time.sleep(0.1)
        return None

    job = submit_until(slurm, answers, "job.sbatch", env=environment, cwd=folder, flags=flags)
    assert job, (folder / "job.log").read_text()
    return job, logs


def check_whole(logs):
    """Every step that was logged is there, one after the other; the last line may be torn."""
    for log in logs:
        whole = [line for line in log.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        steps = [json.loads(line)["step"] for line in whole]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) > 5


PROFILED = {"MPISERVE_PROFILE": "trace"}  # a summary too


def check_profile(folder, logs):
    """What all ranks have measured is there, however soon they were killed."""
    parts = folder / "mpiserve-profile.parts"
    if not (folder / "mpiserve-profile.json").exists():
        command = [sys.executable, "-m", "mpiserve", "report", str(parts)]
        assert subprocess.run(command, capture_output=True).returncode == 0
    report = json.loads((folder / "mpiserve-profile.json").read_text())
    assert report["missing"] == [] and report["answer"].startswith("a simulation rank waited ")
    answered = [len(log.read_text().splitlines()) for log in logs]
    written = [int(one.head["written"]) for one in trace.read([parts])]
    assert all(events >= n for events, n in zip(written[:3], answered, strict=True))
    assert report["services"]["twice"]["requests"] >= sum(answered) - 3
    assert program.merge([str(parts)], str(folder / "t.json")) == 0
    assert set(chrome_trace.parse(folder / "t.json").processes) == {0, 1, 2, 3}


@pytest.mark.every_mpi
def test_scancel_leaves_nothing_behind_but_the_profile(slurm, environment, tmp_path):
    job, logs = start_endless(slurm, environment | PROFILED, tmp_path)
    slurm.ask("scancel", job)
    assert slurm.wait(job, 30) == "CANCELLED"
    assert not gone(slurm)
    check_whole(logs)
    check_profile(tmp_path, logs)


@pytest.mark.timeout(180)
@long
def test_a_time_limit_leaves_nothing_behind_but_the_profile(slurm, environment, tmp_path):
    job, logs = start_endless(slurm, environment | PROFILED, tmp_path, "--time=1")
    assert slurm.wait(job, 120) == "TIMEOUT"
    assert not gone(slurm)
    check_whole(logs)
    check_profile(tmp_path, logs)


OPEN_MPI = pytest.mark.skipif(is_mpich(), reason="this is about the fault tolerance of Open MPI")


def run_and_kill(slurm, environment, folder, launch):
    """Run a job of 4 + 1 ranks in which rank 3 is killed; give its log."""
    write(folder, KILLS, SPARED)
    (folder / "sitecustomize.py").write_text(VICTIM)
    command = " ".join(map(str, [*launch, *RUN, "c.toml", "sim.py", 3]))
    text = f"#!/bin/sh\n#SBATCH --nodes=2 --ntasks=5 --no-kill\n{command}\necho status $?\n"
    (folder / "job.sh").write_text(text)
    own = {"PYTHONPATH": str(folder), "TMPDIR": "/dev/shm"}
    env = {k: v for k, v in environment.items() if k != "PRTE_MCA_rmaps_default_mapping_policy"}
    slurm.wait(slurm.submit("job.sh", env=env | own, cwd=folder), 60)
    log = (folder / "job.log").read_text()
    print(log)
    assert not gone(slurm)
    return log


@long
@OPEN_MPI
@pytest.mark.timeout(120)
def test_a_spare_takes_the_place_of_a_dead_replica_under_mpirun(slurm, environment, tmp_path):
    launch = [environment["MPIEXEC"], "--with-ft", "ulfm", "-n", 5]
    log = run_and_kill(slurm, environment, tmp_path, launch)
    assert "takes the place of rank 3" in log
    assert log.count("is right") == 2
    assert "status 0" in log


@long
@OPEN_MPI
@pytest.mark.timeout(120)
def test_srun_ends_all_ranks_and_the_launch_says_so(slurm, environment, tmp_path):
    flags = ["--mpi=pmix", "--no-kill", "--kill-on-bad-exit=0"]
    env = environment | {"OMPI_MCA_mpi_ft_enable": "1"}
    log = run_and_kill(slurm, env, tmp_path, ["srun", *flags])
    assert "srun ends all ranks when one dies" in log
    assert "is right" not in log
    assert "status 0" not in log
