"""Start the process that writes the metrics of a job into the folder MPISERVE_METRICS."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

logger = logging.getLogger("mpiserve")

MEASURED = ("on", "1")  # of MPISERVE_METRICS: measure for others, and write nothing
OFF = ("", "off", "0")


def folder() -> str | None:
    """Return the folder that MPISERVE_METRICS names."""
    value = os.environ.get("MPISERVE_METRICS", "")
    return None if value in MEASURED or value in OFF else value


def start(run: int) -> None:
    """Start it, on one inference rank of a node. It ends when the ranks of the node have ended.

    A job does not fail because its metrics cannot be written: that is logged.

    Args:
        run: The number of the session.
    """
    name = folder()
    if name is None:
        return
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
        if not os.access(name, os.W_OK | os.X_OK):
            raise PermissionError(f"{name} cannot be written to")
        command = [sys.executable, "-P", "-m", "mpiserve", "metrics", "--textfile", name]
        # Nobody waits for the pipes of the launcher; it is no member of the job's process group,
        # so that it sees the end of a job that is killed.
        subprocess.Popen(
            [*command, f"--job={run}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        logger.warning("there will be no metrics of this node: %s", error)
