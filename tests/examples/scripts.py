"""How each script of jobscripts/ is made: python tests/examples/scripts.py writes them anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "examples/01_reacting_flow"
SCRIPT = f"{EXAMPLE}/simulate.py"
COLOCATED = "-n 6 --ranks-per-node 3"
TWO = f"{EXAMPLE}/per_node.toml python {SCRIPT}"  # two programs

ARGUMENTS = {
    "slurm-run.sbatch": f"--site slurm -n 4 --ranks-per-node 2 {EXAMPLE}/coupling.toml {SCRIPT}",
    "slurm-gpu.sbatch": f"--site slurm {COLOCATED} --gpus-per-node 1 {EXAMPLE}/per_node.toml "
    f"{SCRIPT}",
    "slurm-multi-prog.sbatch": f"--site slurm {COLOCATED} {TWO}",
    "slurm-het.sbatch": f"--site slurm --het -n 4 --ranks-per-node 2 {EXAMPLE}/dedicated.toml "
    f"python {SCRIPT}",
    "pbs-run.pbs": f"--site pbs -n 4 --ranks-per-node 2 {EXAMPLE}/coupling.toml {SCRIPT}",
    "pbs-two-programs.pbs": f"--site pbs {COLOCATED} {TWO}",
    "lsf-run.lsf": f"--site lsf -n 4 --ranks-per-node 2 {EXAMPLE}/coupling.toml {SCRIPT}",
    "lsf-two-programs.lsf": f"--site lsf {COLOCATED} --gpus-per-node 1 {TWO}",
    "flux-two-programs.flux": f"--site flux {COLOCATED} {TWO}",
    "mpiexec-two-programs.sh": f"--site mpirun {COLOCATED} {TWO}",
}


def make(name: str) -> str:
    """Make a script as its first lines say."""
    command = [sys.executable, "-m", "mpiserve", "jobscript", *ARGUMENTS[name].split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for script in ARGUMENTS:
        (ROOT / "jobscripts" / script).write_text(make(script))
