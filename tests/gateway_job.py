"""A job with a gateway, for the time of a test."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from coupling import CONFIG, RUN, write

GATEWAY = """
[gateway]
endpoint_file = "endpoint.json"
"""
# It asks for as long as the test takes, and checks each answer.
SIMULATION = """\
from pathlib import Path
import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank, size = session.comm.rank, session.comm.size
    twice, n = session.service("twice"), 0
    while not Path("stop").exists() or n < 20:
        x = np.arange(3 * (1 + n % 5), dtype=np.float32).reshape(-1, 3) + rank + n
        assert (twice(x) == 2 * x).all(), (rank, n)
        n += 1
    print(f"simulation rank {rank} of {size} is right", flush=True)
"""
LONGEST = 60


class Job:
    """A job that runs while a test asks its gateway.

    Attributes:
        url: The address of the gateway.
        token: Its token.
        grpc: The address of its gRPC; "" for none.
        done: The job, when it has ended.
    """

    done: subprocess.CompletedProcess[str]

    def __init__(
        self, mpiexec: Any, folder: Path, args: list[Any] | None = None, longest: float = LONGEST
    ) -> None:
        """Prepare a job of `longest` seconds, which may take most of them to start."""
        self.folder, self.longest = folder, longest
        args = args or ["-n", 4, *RUN, "c.toml", "sim.py"]
        self._thread = threading.Thread(target=self._run, args=[mpiexec, args])

    def _run(self, mpiexec: Any, args: list[Any]) -> None:
        self.done = mpiexec(args, timeout=self.longest, cwd=self.folder)

    def __enter__(self) -> Job:
        self._thread.start()
        file = self.folder / "endpoint.json"
        until_true(lambda: file.exists() or not self._thread.is_alive(), self.longest * 2 / 3)
        assert file.exists(), "the job has ended"
        assert file.stat().st_mode & 0o777 == 0o600
        table = json.loads(file.read_text())
        self.url, self.token, self.grpc = table["url"], table["token"], table.get("grpc", "")
        return self

    def __exit__(self, *error: Any) -> None:
        (self.folder / "stop").touch()
        self._thread.join()

    def child(self) -> int:
        """Return the process that speaks HTTP."""
        found = children_of(json.loads((self.folder / "endpoint.json").read_text())["pid"])
        assert len(found) == 1, found
        return found[0]


def make(folder: Path, gateway: str = GATEWAY, config: str = CONFIG, sim: str = SIMULATION) -> None:
    """Write the files of a job."""
    write(folder, sim, config + gateway)


def until_true(check: Any, seconds: float = 40) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, check
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """List the processes that a process has started."""
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    return [int(name) for name in names if _parent(name) == pid]


def _parent(name: str) -> int:
    try:
        return int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0
