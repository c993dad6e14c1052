"""The job scripts start the demo, with stand-ins for the schedulers' own commands."""

import json
import os
import shutil
import sys
from pathlib import Path

import mpijob
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "examples/01_reacting_flow"
SRUN = """\
#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$MPIEXEC" -n "$SLURM_NTASKS" "$@"
"""


@pytest.fixture
def submitted(tmp_path):
    """Run a job script in a folder that holds the example; return its result.json."""

    def submit(script, *arguments, **variables):
        ignored = shutil.ignore_patterns("out", "__pycache__")
        shutil.copytree(ROOT / EXAMPLE, tmp_path / EXAMPLE, ignore=ignored)
        env = mpijob.settings() | {"MPISERVE_VENV": sys.prefix} | variables
        command = ["bash", str(ROOT / "jobscripts" / script), *arguments]
        done = mpijob.run(command, timeout=150, env=env, cwd="/")
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        return json.loads((tmp_path / EXAMPLE / "out/result.json").read_text())

    return submit


def test_slurm_script_runs_the_demo(submitted, tmp_path):
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_NTASKS": "4"}
    path = f"{srun.parent}:{os.environ['PATH']}"

    result = submitted("demo.slurm.sbatch", "--steps", "4", "--no-reference", PATH=path, **slurm)

    assert (result["steps"], result["simulation_ranks"]) == (4, 3)


def test_pbs_script_runs_the_demo(submitted, tmp_path):
    result = submitted("demo.pbs", PBS_O_WORKDIR=str(tmp_path), STEPS="2", RANKS="3")

    assert (result["steps"], result["simulation_ranks"]) == (2, 2)
