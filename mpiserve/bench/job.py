"""Start a second MPI job from a rank of the first one, after its MPI is finalized."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from mpiserve.errors import Code, Error

# Variables in which launchers describe the rank and the job of a process. The user's settings for
# MPI stay, except the throttle: a job with more ranks than cores needs its own.
MARKS = re.compile(
    r"""OMPI_(?!MCA_|ALLOW_|PRTE_)
    |OMPI_MCA_(?:ess_|orte_|pmix|initial_wdir|num_procs|cpu_type|PREFIXES)
    |PMIX_(?!MCA_)
    |PRTE_(?!MCA_)
    |PRTE_MCA_(?:ess_|prte_ess_)
    |OPAL_USER_PARAMS_GIVEN
    |PMI\d?_
    |HYDI_
    |MPI_LOCAL
    |MPIR_CVAR_CH4_PROGRESS_THROTTLE""",
    re.VERBOSE,
)

# Settings for more ranks than cores: without them, ranks that wait in MPI do not yield their core.
CROWDED = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "8",
}


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that mark a process as a rank of a job."""
    return {name: value for name, value in environ.items() if not MARKS.match(name)}


def launcher() -> str:
    """Find mpiexec: $MPIEXEC, that of this environment, or the one on PATH.

    Raises:
        Error: If there is none.
    """
    named = os.environ.get("MPIEXEC")
    mine = shutil.which("mpiexec", path=os.path.join(sys.prefix, "bin"))
    path = shutil.which(named) if named else mine or shutil.which("mpiexec")
    if path is None:
        raise Error(Code.ESTATE, f"no launcher {named or 'mpiexec'}; set MPIEXEC")
    return path


def placed(places: Mapping[str, int]) -> list[str]:
    """Return what has the launcher start so many ranks on each of some hosts, in their order."""
    if not places:
        return []
    said = subprocess.run([launcher(), "--version"], capture_output=True, text=True).stdout
    flag = "--host" if re.search("Open MPI|OpenRTE|PRRTE", said) else "-hosts"
    return [flag, ",".join(f"{host}:{ranks}" for host, ranks in places.items())]


def run(
    ranks: int,
    args: Sequence[str],
    timeout: float,
    module: str = "mpiserve",
    places: Mapping[str, int] | None = None,
) -> None:
    """Run a module of Python with these arguments on `ranks` ranks.

    Args:
        ranks: Their number.
        args: Of the program.
        timeout: In seconds.
        module: Its name.
        places: How many ranks each host has, in their order; by default the launcher decides.

    Raises:
        Error: If it fails or takes too long, with the last line of its stderr.
    """
    program = [sys.executable, "-m", module, *args]
    command = [launcher(), "-n", str(ranks), *placed(places or {}), *program]
    env = CROWDED | scrubbed(os.environ)
    try:
        done = subprocess.run(
            command,
            env=env,
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Error(Code.ETIMEOUT, f"the job of {ranks} ranks took over {timeout:g} s") from None
    if done.returncode:
        status = f"the job of {ranks} ranks ended with status {done.returncode}"
        raise Error(Code.ESTATE, f"{status}: {reason(done.stderr)}")


def reason(stderr: str) -> str:
    """Find the line that says why a job failed: one of mpiserve, or the last one."""
    lines = [line for line in stderr.splitlines() if line.strip("- ")]
    ours = [line.removeprefix("mpiserve: ") for line in lines if line.startswith("mpiserve: ")]
    return (ours[:1] or lines[-1:] or ["it printed no reason"])[0]
