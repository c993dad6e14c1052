"""Start MPI jobs with the settings that this project's machines and tests need.

As a program it is mpiexec with these settings: python tests/mpijob.py -n 4 PROGRAM ...
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def mpiexec(prefix: str = sys.prefix) -> str:
    """Return the launcher of the environment at prefix, else $MPIEXEC, else the one on PATH."""
    outside = os.environ.get("MPIEXEC") or "mpiexec"
    path = shutil.which("mpiexec", path=f"{prefix}/bin") or shutil.which(outside)
    if path is None:
        raise SystemExit(f"no mpiexec in {prefix}/bin or on PATH; set MPIEXEC")
    return path


def flavour(launcher: str) -> str:
    """Return which settings a launcher needs: openmpi, openmpi4 or mpich."""
    text = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
    if "Open MPI) 5" in text:
        return "openmpi"
    return "openmpi4" if "Open" in text else "mpich"


def settings(prefix: str = sys.prefix) -> dict[str, str]:
    """Return this process's environment plus the settings of the MPI at prefix."""
    launcher = mpiexec(prefix)
    env = dict(os.environ)
    for line in (TESTS / f"env.{flavour(launcher)}").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            env.setdefault(name, value)
    env["MPIEXEC"] = launcher
    # Else each job would compile its models beside what is tested.
    env.setdefault("MPISERVE_COMPILE", "0")
    # Else the source tree in the working folder hides the mpiserve that is installed.
    env["PYTHONSAFEPATH"] = "1"
    # Unbuffered, a line and its end are two writes, between which another rank's may come (MPICH).
    env["PYTHONUNBUFFERED"] = ""
    renamed = Path(prefix, "lib/mpich-abi")
    if renamed.is_dir():  # see link_mpich.sh
        env["LD_LIBRARY_PATH"] = str(renamed)
    return env


# How much longer than a test says it may take: with Linux 6.18 jobs were seen to stand still for up
# to a minute, when ranks that yield starve other processes (see .ci/run).
PATIENCE = 3


def run(
    command: list[str], *, timeout: float, env: dict[str, str], cwd: str | Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process group; returncode 124 says that it ran out of time."""
    process = subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, out, err)
    except subprocess.TimeoutExpired:
        # The launcher passes SIGTERM on to its ranks, which are in other process groups.
        process.terminate()
    try:
        out, err = process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, 124, out, err)


if __name__ == "__main__":
    environment = settings()
    os.execvpe(environment["MPIEXEC"], [environment["MPIEXEC"], *sys.argv[1:]], environment)
