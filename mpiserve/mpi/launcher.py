"""Find the launcher of this rank among its ancestors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# As /proc shows them, cut after 15 characters: Open MPI, MPICH and its relatives, Slurm, Flux,
# Cray and LSF.
LAUNCHERS = {"mpirun", "mpiexec", "prterun", "prte", "prted", "orterun", "orted", "mpirun.openmpi"}
LAUNCHERS |= {"mpiexec.hydra", "mpirun.mpich", "mpiexec.mpich", "hydra_pmi_proxy", "slurmstepd"}
LAUNCHERS |= {"hydra_bstrap_pr", "flux-shell", "palsd", "jsmd"}


def ancestors(pid: int, proc: Path = Path("/proc")) -> Iterator[tuple[int, str]]:
    """Yield (pid, name) of the parent of a process, of that one's parent, and so on."""
    while pid > 1:
        try:
            _, _, rest = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")
            pid = int(rest.split()[1])
            name = (proc / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:  # it has ended, or lies outside of this container
            return
        yield pid, name


def launchers(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """Return the launchers among the ancestors of a process, the nearest first."""
    return [pid for pid, name in ancestors(pid, proc) if name in LAUNCHERS]


def nearest() -> str | None:
    """Return the name of the nearest launcher."""
    names = (name for _, name in ancestors(os.getpid()) if name in LAUNCHERS)
    return next(names, None)


def watchable() -> list[int] | None:
    """Return whose end is that of the job: the launchers, or else the parent.

    Returns:
        None if the launcher has ended already: this process belongs to nobody.
    """
    found = launchers(os.getpid())
    parent = os.getppid()
    if found or parent > 1:
        return found or [parent]
    return None if parent == 1 else []  # 0: the parent lies outside of this container


def end_job() -> None:
    """Ask the nearest launcher to end the job, as a batch system does."""
    for pid in launchers(os.getpid())[:1]:
        with suppress(OSError):  # Slurm's belongs to another user
            os.kill(pid, signal.SIGTERM)
